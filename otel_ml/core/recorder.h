/* What the hooks that are written in C share: the recorder's fields, the clock, and how an event is kept.

   `_recorder.c` owns the one `Core` of a process; other modules find it with `find_core()`. Linux, and
   CPython with its interpreter lock: nothing here locks, as nothing in `recorder.py` does. */

#ifndef OTEL_ML_RECORDER_H
#define OTEL_ML_RECORDER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <time.h>

#ifdef Py_GIL_DISABLED
#error "nothing here locks: it counts on the interpreter lock"
#endif

/* What a step does not come by stands apart from what it does: each line of code that it touches it has to fetch. */
#define COLD __attribute__((cold, noinline, unused))

enum { WIDTH = 5 };
enum { CLOSED, FETCHED, OPEN, TURNED, DONE };

typedef struct {
    long long start, end;
    PyObject *a, *b;
    long code;
} Event;

/* Looks like a flat list of slots, `WIDTH` an event; its numbers are no objects until somebody looks. */
typedef struct {
    PyObject_HEAD
    Event *events;
    Py_ssize_t count, room;
    Py_ssize_t expected; /* events, from how many there were last time */
} Events;

typedef struct {
    PyObject_HEAD
    Events *buffer;
    Py_ssize_t limit;
    long long dropped;
    long long number;
    int state;
    char stepping;
    PyObject *seen;
    PyObject *expected;
    PyObject *merged_from;
    PyObject *alone, *set; /* the optimizer that last made a round by itself, and the set of it */
} RecorderFields;

typedef struct {
    PyTypeObject *fields; /* what every recorder is made of */
    PyTypeObject *plain;  /* the class of a recorder that infers its steps; others answer for themselves */
    PyObject *local;      /* its `recorder` is this thread's */
    PyObject *mine;       /* makes this thread's */
    PyObject *swallow;    /* takes a place and an error of ours that goes no further */
    PyObject *clock;      /* tells the time instead of the kernel; NULL but in tests */
    unsigned long changes; /* how often a thread's recorder, or an object's number, has ceased to be its own */
    PyObject *zero;        /* the empty set */
    PyObject *unknown;     /* -1: the number of what has none */
    PyObject *name_recorder, *name_candidate, *name_edge, *name_turn;
} Core;

#define CORE_NAME "otel_ml.core._recorder.core"

static Core *core;

static inline int
find_core(void)
{
    core = PyCapsule_Import(CORE_NAME, 0);
    return core == NULL ? -1 : 0;
}

static COLD long long
told_time(void)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace); /* what the program's own code raised */
    PyObject *clock = core->clock;
    Py_INCREF(clock);
    PyObject *told = PyObject_CallNoArgs(clock);
    long long at = told == NULL ? -1 : PyLong_AsLongLong(told);
    Py_DECREF(clock);
    Py_XDECREF(told);
    PyErr_Restore(type, value, trace);
    return at;
}

/* `time.perf_counter_ns()`, which reads this clock on Linux. */
static inline long long
now(void)
{
    if (core->clock != NULL)
        return told_time();
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

/* After a call that may have run Python: whether what it raised goes on into the program, as it would from a hook in
   Python. An error of ours does not, but where we are tested; what a signal's handler raises does. */
static COLD int
must_raise(const char *place)
{
    if (!PyErr_Occurred())
        return 0;
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear(); /* the program's to meet, where it asks for memory */
        return 0;
    }
    if (core->swallow == NULL || !PyErr_ExceptionMatches(PyExc_Exception))
        return 1;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *done = value == NULL ? NULL : PyObject_CallFunction(core->swallow, "sO", place, value);
    int raises = 0;
    if (done == NULL && PyErr_Occurred()) {
        PyObject *kind, *other, *where;
        PyErr_Fetch(&kind, &other, &where);
        raises = other == value || !PyErr_GivenExceptionMatches(kind, PyExc_Exception);
        PyErr_Restore(kind, other, where);
        if (!raises)
            PyErr_Clear(); /* there was no memory to count it with */
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    Py_XDECREF(done);
    return raises;
}

/* This thread's recorder, and at how many changes it was. */
static __thread struct {
    RecorderFields *recorder;
    unsigned long at;
} known_here;

static COLD RecorderFields *
found_here(void)
{
    PyObject *found = core->local == NULL ? NULL : PyObject_GetAttr(core->local, core->name_recorder);
    if (found == NULL) {
        PyErr_Clear(); /* it has none yet */
        found = core->mine == NULL ? NULL : PyObject_CallNoArgs(core->mine);
    }
    if (found == NULL) {
        must_raise("making a recorder");
        return NULL;
    }
    if (Py_TYPE(found) != core->plain && !PyObject_TypeCheck(found, core->fields)) {
        Py_DECREF(found);
        return NULL;
    }
    if (PyObject_HasAttr(core->local, core->name_recorder)) { /* else it is one that takes nothing */
        known_here.recorder = (RecorderFields *)found;
        known_here.at = core->changes;
    }
    return (RecorderFields *)found;
}

/* This thread's recorder, a new reference; NULL where there can be none, with an error where that must be raised. */
static inline RecorderFields *
this_thread(void)
{
    if (known_here.at != core->changes)
        return found_here();
    Py_INCREF(known_here.recorder);
    return known_here.recorder;
}

/* Make room for one more event at least; -1, without an error, where there is no memory. */
static COLD int
grow(Events *self)
{
    Py_ssize_t room = self->room ? 2 * self->room : self->expected + 64;
    Event *events = PyMem_RawRealloc(self->events, room * sizeof(Event));
    if (events == NULL)
        return -1;
    self->events = events;
    self->room = room;
    return 0;
}

/* Append one event; -1, without an error, where there is no memory. */
static inline int
append(Events *self, long code, long long start, long long end, PyObject *a, PyObject *b)
{
    if (self->count == self->room && grow(self) < 0)
        return -1;
    Py_INCREF(a);
    Py_INCREF(b);
    self->events[self->count++] = (Event){start, end, a, b, code};
    return 0;
}

static COLD void
drop(RecorderFields *self, int unmade)
{
    if (unmade)
        PyErr_Clear(); /* the program's to meet, where it asks for memory */
    self->dropped++;
}

/* Append one event, or count it as dropped when the recorder or the memory is full; a value may be NULL: no memory. */
static inline void
record(RecorderFields *self, long code, long long start, long long end, PyObject *a, PyObject *b)
{
    if (a == NULL || b == NULL || self->buffer->count * WIDTH >= self->limit
        || append(self->buffer, code, start, end, a, b) < 0)
        drop(self, a == NULL || b == NULL);
}

static inline void
hold(PyObject **field, PyObject *value)
{
    Py_XINCREF(value);
    Py_XSETREF(*field, value);
}

/* These three: -1 with an error where one must be raised. */

static COLD int
ask(RecorderFields *self, PyObject *name, PyObject *argument)
{
    PyObject *answer = argument == NULL ? PyObject_CallMethodNoArgs((PyObject *)self, name)
                                        : PyObject_CallMethodOneArg((PyObject *)self, name, argument);
    Py_XDECREF(answer);
    return must_raise("the online step counter") ? -1 : 0;
}

/* `Recorder.candidate()`, where it infers. */
static inline void
candidate(RecorderFields *self)
{
    if (self->state == DONE) {
        self->number++;
        hold(&self->expected, self->seen);
        hold(&self->merged_from, self->seen);
        hold(&self->seen, core->zero);
        self->state = OPEN;
    }
    else if (self->state < OPEN) {
        self->state = OPEN;
    }
}

/* A root forward with grad, zero_grad or backward begins. */
static inline int
begins(RecorderFields *self)
{
    if (self->state == OPEN)
        return 0;
    if (Py_TYPE(self) != core->plain)
        return ask(self, core->name_candidate, NULL);
    candidate(self);
    return 0;
}

/* A set of optimizers as bits: 0 for none, -1 for one that does not fit. */
static inline long long
bits(PyObject *set)
{
    if (set == NULL || !PyLong_Check(set))
        return 0;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(set, &overflow);
    return overflow ? -1 : value;
}

static COLD int
turn_of_any(RecorderFields *self, PyObject *optimizer)
{
    long index = PyLong_AsLong(optimizer);
    long long seen = bits(self->seen), expected = bits(self->expected), merged = bits(self->merged_from);
    if (PyErr_Occurred())
        PyErr_Clear();
    if (Py_TYPE(self) != core->plain || index < -1 || index > 60 || seen < 0 || expected < 0 || merged < 0) {
        return ask(self, core->name_turn, optimizer);
    }
    long long one = 1LL << (index + 1);
    int rejoins = !seen && merged && !(merged & one), completes = (seen & one) != 0;
    long long round = (rejoins ? merged : completes ? 0 : seen) | one;
    PyObject *now_seen = PyLong_FromLongLong(round);
    if (now_seen == NULL) {
        PyErr_Clear(); /* no memory: the program's to meet; the drain's count is the truth */
        return 0;
    }
    self->number += completes - rejoins;
    if (completes) {
        hold(&self->expected, self->seen);
        expected = seen;
    }
    hold(&self->merged_from, Py_None);
    Py_XSETREF(self->seen, now_seen);
    if (round == one) {
        hold(&self->alone, optimizer);
        hold(&self->set, now_seen);
    }
    self->state = (round & expected) == expected ? DONE : TURNED;
    return 0;
}

/* `Recorder.turn()`: an optimizer has taken its turn. */
static inline int
turn(RecorderFields *self, PyObject *optimizer)
{
    if (optimizer != self->alone || self->seen != core->zero || self->expected != self->set
        || (self->merged_from != self->set && self->merged_from != Py_None) || Py_TYPE(self) != core->plain)
        return turn_of_any(self, optimizer);
    hold(&self->seen, self->set); /* it is the only one, as in the round before */
    hold(&self->merged_from, Py_None);
    self->state = DONE;
    return 0;
}

#endif
