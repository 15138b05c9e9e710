/* What the hooks that are written in C share: the recorder's fields, the clock, and how an event is kept.

   `_recorder.c` owns the one `Core` of a process; other modules find it with `find_core()`. Linux, and
   CPython with its interpreter lock: nothing here locks, as nothing in `recorder.py` does. */

#ifndef OTEL_ML_RECORDER_H
#define OTEL_ML_RECORDER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <time.h>

enum { WIDTH = 5 };
enum { CLOSED, FETCHED, OPEN, TURNED, DONE };

typedef struct {
    PyObject_HEAD
    PyObject *buffer;
    Py_ssize_t limit;
    long long dropped;
    long long number;
    int state;
    char stepping;
    PyObject *seen;
    PyObject *expected;
    PyObject *merged_from;
} RecorderFields;

typedef struct {
    PyTypeObject *fields; /* what every recorder is made of */
    PyTypeObject *plain;  /* the class of a recorder that infers its steps; others answer for themselves */
    PyObject *local;      /* its `recorder` is this thread's */
    PyObject *mine;       /* makes this thread's */
    PyObject *clock;      /* tells the time instead of the kernel; NULL but in tests */
    unsigned long changes; /* how often a thread's recorder, or an object's number, has ceased to be its own */
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

/* `time.perf_counter_ns()`, which reads this clock on Linux. */
static inline long long
now(void)
{
    if (core->clock != NULL) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace); /* what the program's own code raised */
        PyObject *told = PyObject_CallNoArgs(core->clock);
        long long at = told == NULL ? -1 : PyLong_AsLongLong(told);
        Py_XDECREF(told);
        PyErr_Restore(type, value, trace);
        return at;
    }
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

/* This thread's recorder, and at how many changes it was. */
static __thread struct {
    RecorderFields *recorder;
    unsigned long at;
} known_here;

/* This thread's recorder, a new reference; NULL without an error where there can be none. */
static inline RecorderFields *
this_thread(void)
{
    if (known_here.at == core->changes) {
        Py_INCREF(known_here.recorder);
        return known_here.recorder;
    }
    PyObject *found = core->local == NULL ? NULL : PyObject_GetAttr(core->local, core->name_recorder);
    if (found == NULL) {
        PyErr_Clear();
        found = core->mine == NULL ? NULL : PyObject_CallNoArgs(core->mine);
    }
    if (found == NULL) {
        PyErr_Clear();
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

/* Append one event, or count it as dropped when the recorder or the memory is full. A slot may be NULL: no memory. */
static inline void
keep(RecorderFields *self, PyObject *const slots[WIDTH])
{
    PyObject *events = self->buffer;
    Py_ssize_t before = PyList_GET_SIZE(events);
    if (before >= self->limit) {
        self->dropped++;
        return;
    }
    for (int i = 0; i < WIDTH; i++) {
        if (slots[i] == NULL || PyList_Append(events, slots[i]) < 0) {
            PyErr_Clear(); /* the program's to meet, where it asks for memory */
            if (PyList_SetSlice(events, before, PyList_GET_SIZE(events), NULL) < 0)
                PyErr_Clear();
            self->dropped++;
            return;
        }
    }
}

static inline void
record(RecorderFields *self, long code, long long start, long long end, PyObject *a, PyObject *b)
{
    PyObject *slots[WIDTH] = {PyLong_FromLong(code), PyLong_FromLongLong(start), PyLong_FromLongLong(end), a, b};
    keep(self, slots);
    for (int i = 0; i < 3; i++)
        Py_XDECREF(slots[i]);
}

static inline void
ask(RecorderFields *self, PyObject *name, PyObject *argument)
{
    PyObject *answer = argument == NULL ? PyObject_CallMethodNoArgs((PyObject *)self, name)
                                        : PyObject_CallMethodOneArg((PyObject *)self, name, argument);
    Py_XDECREF(answer);
    if (answer == NULL)
        PyErr_Clear();
}

/* `Recorder.candidate()`, where it infers. */
static inline void
candidate(RecorderFields *self)
{
    if (self->state == DONE) {
        self->number++;
        Py_XINCREF(self->seen);
        Py_XSETREF(self->expected, self->seen);
        Py_XINCREF(self->seen);
        Py_XSETREF(self->merged_from, self->seen);
        Py_XSETREF(self->seen, PyLong_FromLong(0));
        self->state = OPEN;
    }
    else if (self->state < OPEN) {
        self->state = OPEN;
    }
}

/* A root forward with grad, zero_grad or backward begins. */
static inline void
begins(RecorderFields *self)
{
    if (self->state == OPEN)
        return;
    if (Py_TYPE(self) == core->plain)
        candidate(self);
    else
        ask(self, core->name_candidate, NULL);
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

/* `Recorder.turn()`: an optimizer has taken its turn. */
static inline void
turn(RecorderFields *self, PyObject *optimizer)
{
    long index = PyLong_AsLong(optimizer);
    long long seen = bits(self->seen), expected = bits(self->expected), merged = bits(self->merged_from);
    if (PyErr_Occurred())
        PyErr_Clear();
    if (Py_TYPE(self) != core->plain || index < -1 || index > 60 || seen < 0 || expected < 0 || merged < 0) {
        ask(self, core->name_turn, optimizer);
        return;
    }
    long long one = 1LL << (index + 1);
    if (!seen) {
        if (merged && !(merged & one)) {
            self->number--;
            seen = merged;
        }
    }
    else if (seen & one) {
        self->number++;
        Py_XINCREF(self->seen);
        Py_XSETREF(self->expected, self->seen);
        expected = seen;
        seen = 0;
    }
    seen |= one;
    Py_INCREF(Py_None);
    Py_XSETREF(self->merged_from, Py_None);
    Py_XSETREF(self->seen, PyLong_FromLongLong(seen));
    self->state = (seen & expected) == expected ? DONE : TURNED;
}

#endif
