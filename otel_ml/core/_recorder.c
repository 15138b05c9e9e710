/* A recorder's fields and its two hot methods, as `recorder.py` has them in Python. */

#include "recorder.h"

#include <stddef.h>
#include <structmember.h>

/* --- Events -------------------------------------------------------------------------- */

static PyTypeObject *events_type;

static Events *
new_events(void)
{
    Events *self = PyObject_GC_New(Events, events_type);
    if (self == NULL)
        return NULL;
    self->events = NULL;
    self->count = self->room = self->expected = 0;
    PyObject_GC_Track(self);
    return self;
}

static int
Events_traverse(Events *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t n = 0; n < self->count; n++) {
        Py_VISIT(self->events[n].a);
        Py_VISIT(self->events[n].b);
    }
    return 0;
}

static int
Events_empty(Events *self)
{
    Event *events = self->events;
    Py_ssize_t count = self->count;
    self->events = NULL;
    self->count = self->room = 0;
    for (Py_ssize_t n = 0; n < count; n++) { /* which may run anything */
        Py_DECREF(events[n].a);
        Py_DECREF(events[n].b);
    }
    PyMem_RawFree(events);
    return 0;
}

static void
Events_dealloc(Events *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Events_empty(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static Py_ssize_t
Events_length(Events *self)
{
    return self->count * WIDTH;
}

static PyObject *
slot(const Events *self, Py_ssize_t at)
{
    const Event *event = &self->events[at / WIDTH];
    switch (at % WIDTH) {
    case 0:
        return PyLong_FromLong(event->code);
    case 1:
        return PyLong_FromLongLong(event->start);
    case 2:
        return PyLong_FromLongLong(event->end);
    default: {
        PyObject *value = at % WIDTH == 3 ? event->a : event->b;
        Py_INCREF(value);
        return value;
    }
    }
}

static PyObject *
Events_item(Events *self, Py_ssize_t at)
{
    if (at < 0 || at >= self->count * WIDTH)
        return PyErr_Format(PyExc_IndexError, "there are no so many events");
    return slot(self, at);
}

static PyObject *
Events_subscript(Events *self, PyObject *key)
{
    Py_ssize_t length = self->count * WIDTH, start, stop, step;
    if (!PySlice_Check(key)) {
        Py_ssize_t at = PyNumber_AsSsize_t(key, PyExc_IndexError);
        return at == -1 && PyErr_Occurred() ? NULL : Events_item(self, at < 0 ? at + length : at);
    }
    if (PySlice_Unpack(key, &start, &stop, &step) < 0)
        return NULL;
    length = PySlice_AdjustIndices(self->count * WIDTH, &start, &stop, step);
    PyObject *list = PyList_New(length);
    for (Py_ssize_t n = 0; n < length && list != NULL; n++) {
        PyObject *value = Events_item(self, start + n * step); /* checks: making a list may run what empties us */
        if (value == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, n, value);
    }
    return list;
}

static int
append_slots(Events *self, PyObject *const slots[WIDTH])
{
    long code = PyLong_AsLong(slots[0]);
    long long start = PyLong_AsLongLong(slots[1]), end = PyLong_AsLongLong(slots[2]);
    if (PyErr_Occurred())
        return -1;
    return append(self, code, start, end, slots[3], slots[4]) == 0 ? 1 : 0;
}

static PyObject *
Events_extend(Events *self, PyObject *event)
{
    if (!PyTuple_CheckExact(event) || PyTuple_GET_SIZE(event) != WIDTH)
        return PyErr_Format(PyExc_TypeError, "an event is a tuple of a code, a start, an end, and two values");
    int kept = append_slots(self, ((PyTupleObject *)event)->ob_item);
    if (kept < 0)
        return NULL;
    if (!kept)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *
Events_clear_all(Events *self, PyObject *unused)
{
    Events_empty(self);
    Py_RETURN_NONE;
}

static PyObject *
Events_instants(Events *self, PyObject *args)
{
    Py_ssize_t at, stop;
    if (!PyArg_ParseTuple(args, "nn", &at, &stop))
        return NULL;
    if (at < 0 || stop > self->count * WIDTH || (at % WIDTH != 1 && at % WIDTH != 2))
        return PyErr_Format(PyExc_IndexError, "there are no such instants");
    Py_ssize_t count = stop > at ? (stop - at + WIDTH - 1) / WIDTH : 0;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count * sizeof(long long));
    if (bytes == NULL)
        return NULL;
    long long *instants = (long long *)PyBytes_AS_STRING(bytes);
    const Event *event = self->events + at / WIDTH;
    for (Py_ssize_t n = 0; n < count; n++)
        instants[n] = at % WIDTH == 1 ? event[n].start : event[n].end;
    return bytes;
}

static PyMethodDef events_methods[] = {
    {"extend", (PyCFunction)Events_extend, METH_O, NULL},
    {"clear", (PyCFunction)Events_clear_all, METH_NOARGS, NULL},
    {"instants", (PyCFunction)Events_instants, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot events_slots[] = {
    {Py_tp_traverse, Events_traverse},
    {Py_tp_clear, Events_empty},
    {Py_tp_dealloc, Events_dealloc},
    {Py_tp_methods, events_methods},
    {Py_sq_length, Events_length},
    {Py_sq_item, Events_item},
    {Py_mp_length, Events_length},
    {Py_mp_subscript, Events_subscript},
    {0, NULL},
};

static PyType_Spec events_spec = {
    "otel_ml.core._recorder.Events",
    sizeof(Events),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    events_slots,
};

/* --- Fields -------------------------------------------------------------------------- */

static PyObject *
Fields_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    RecorderFields *self = (RecorderFields *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->buffer = new_events();
    self->seen = PyLong_FromLong(0);
    self->expected = PyLong_FromLong(0);
    if (self->buffer == NULL || self->seen == NULL || self->expected == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(Py_None);
    self->merged_from = Py_None;
    return (PyObject *)self;
}

static int
Fields_traverse(RecorderFields *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->buffer);
    return 0;
}

static void
Fields_dealloc(RecorderFields *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->buffer);
    Py_CLEAR(self->seen);
    Py_CLEAR(self->expected);
    Py_CLEAR(self->merged_from);
    Py_CLEAR(self->alone);
    Py_CLEAR(self->set);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
Fields_record(RecorderFields *self, PyObject *const *args, Py_ssize_t count)
{
    if (count < 3 || count > WIDTH) {
        PyErr_SetString(PyExc_TypeError, "record() takes a code, a start, an end, and up to two values");
        return NULL;
    }
    PyObject *slots[WIDTH] = {args[0], args[1], args[2], count > 3 ? args[3] : Py_None, count > 4 ? args[4] : Py_None};
    int kept = self->buffer->count * WIDTH < self->limit ? append_slots(self->buffer, slots) : 0;
    if (kept < 0)
        return NULL;
    self->dropped += !kept;
    Py_RETURN_NONE;
}

/* Everything recorded so far; the buffer is the same object, and empty. */
static PyObject *
Fields_emptied(RecorderFields *self, PyObject *unused)
{
    Events *chunk = new_events(), *buffer = self->buffer;
    if (chunk == NULL)
        return NULL;
    chunk->events = buffer->events;
    chunk->count = buffer->count;
    chunk->room = buffer->room;
    buffer->expected = buffer->count + buffer->count / 8;
    buffer->events = NULL;
    buffer->count = buffer->room = 0;
    return (PyObject *)chunk;
}

/* Put back what is in a chunk from a slot on, before what was recorded since. */
static PyObject *
Fields_put_back(RecorderFields *self, PyObject *args)
{
    Events *chunk, *buffer = self->buffer;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(args, "O!n", events_type, &chunk, &at))
        return NULL;
    if (at < 0 || at % WIDTH || at > chunk->count * WIDTH || chunk == buffer)
        return PyErr_Format(PyExc_IndexError, "there are no such events");
    Py_ssize_t more = chunk->count - at / WIDTH, count = more + buffer->count;
    Py_ssize_t room = (count > buffer->expected ? count : buffer->expected) + 64;
    Event *events = PyMem_RawMalloc(room * sizeof(Event));
    if (events == NULL)
        return PyErr_NoMemory();
    if (more)
        memcpy(events, chunk->events + at / WIDTH, more * sizeof(Event));
    if (buffer->count)
        memcpy(events + more, buffer->events, buffer->count * sizeof(Event));
    PyMem_RawFree(buffer->events);
    buffer->events = events;
    buffer->count = count;
    buffer->room = room;
    chunk->count -= more;
    Py_RETURN_NONE;
}

static PyObject *
Fields_candidate(RecorderFields *self, PyObject *unused)
{
    candidate(self);
    Py_RETURN_NONE;
}

static PyMemberDef fields_members[] = {
    {"buffer", T_OBJECT, offsetof(RecorderFields, buffer), READONLY, NULL},
    {"limit", T_PYSSIZET, offsetof(RecorderFields, limit), 0, NULL},
    {"dropped", T_LONGLONG, offsetof(RecorderFields, dropped), 0, NULL},
    {"number", T_LONGLONG, offsetof(RecorderFields, number), 0, NULL},
    {"state", T_INT, offsetof(RecorderFields, state), 0, NULL},
    {"stepping", T_BOOL, offsetof(RecorderFields, stepping), 0, NULL},
    {"seen", T_OBJECT, offsetof(RecorderFields, seen), 0, NULL},
    {"expected", T_OBJECT, offsetof(RecorderFields, expected), 0, NULL},
    {"merged_from", T_OBJECT, offsetof(RecorderFields, merged_from), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef fields_methods[] = {
    {"record", (PyCFunction)(void (*)(void))Fields_record, METH_FASTCALL, NULL},
    {"candidate", (PyCFunction)(void (*)(void))Fields_candidate, METH_NOARGS, NULL},
    {"emptied", (PyCFunction)(void (*)(void))Fields_emptied, METH_NOARGS, NULL},
    {"put_back", (PyCFunction)Fields_put_back, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot fields_slots[] = {
    {Py_tp_new, Fields_new},           {Py_tp_traverse, Fields_traverse}, {Py_tp_dealloc, Fields_dealloc},
    {Py_tp_members, fields_members},   {Py_tp_methods, fields_methods},   {0, NULL},
};

static PyType_Spec fields_spec = {
    "otel_ml.core._recorder.Fields",
    sizeof(RecorderFields),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    fields_slots,
};

static Core the_core;

static PyObject *
use(PyObject *module, PyObject *args)
{
    PyObject *plain, *local, *mine, *swallow;
    if (!PyArg_ParseTuple(args, "O!OOO", &PyType_Type, &plain, &local, &mine, &swallow))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)plain, core->fields))
        return PyErr_Format(PyExc_TypeError, "a recorder is made of these fields");
    Py_INCREF(plain);
    Py_XSETREF(core->plain, (PyTypeObject *)plain);
    Py_INCREF(local);
    Py_XSETREF(core->local, local);
    Py_INCREF(mine);
    Py_XSETREF(core->mine, mine);
    Py_INCREF(swallow);
    Py_XSETREF(core->swallow, swallow);
    core->changes++;
    Py_RETURN_NONE;
}

/* What is kept here is one interpreter's. */
static PyObject *
usable(PyObject *module, PyObject *unused)
{
    return PyBool_FromLong(PyInterpreterState_Get() == PyInterpreterState_Main());
}

static PyObject *
set_clock(PyObject *module, PyObject *clock)
{
    Py_INCREF(clock);
    Py_XSETREF(core->clock, clock);
    if (clock == Py_None)
        Py_CLEAR(core->clock);
    Py_RETURN_NONE;
}

static PyObject *
changed(PyObject *module, PyObject *unused)
{
    core->changes++;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"use", use, METH_VARARGS, NULL},
    {"usable", usable, METH_NOARGS, NULL},
    {"set_clock", set_clock, METH_O, NULL},
    {"changed", changed, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "otel_ml.core._recorder",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__recorder(void)
{
    core = &the_core;
    core->changes++;
    core->zero = PyLong_FromLong(0);
    core->unknown = PyLong_FromLong(-1);
    core->name_recorder = PyUnicode_InternFromString("recorder");
    core->name_candidate = PyUnicode_InternFromString("candidate");
    core->name_edge = PyUnicode_InternFromString("edge");
    core->name_turn = PyUnicode_InternFromString("turn");
    core->fields = (PyTypeObject *)PyType_FromSpec(&fields_spec);
    events_type = (PyTypeObject *)PyType_FromSpec(&events_spec);
    if (!events_type || !core->zero || !core->unknown || !core->name_recorder || !core->name_candidate || !core->name_edge || !core->name_turn || !core->fields)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    Py_INCREF(core->fields);
    PyObject *capsule = PyCapsule_New(core, CORE_NAME, NULL);
    if (PyModule_AddObject(module, "Fields", (PyObject *)core->fields) < 0 || capsule == NULL
        || PyModule_AddObject(module, "core", capsule) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
