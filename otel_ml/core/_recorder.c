/* A recorder's fields and its two hot methods, as `recorder.py` has them in Python. */

#include "recorder.h"

#include <stddef.h>
#include <structmember.h>

static PyObject *
Fields_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    RecorderFields *self = (RecorderFields *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->buffer = PyList_New(0);
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

static int
Fields_clear(RecorderFields *self)
{
    return self->buffer == NULL ? 0 : PyList_SetSlice(self->buffer, 0, PyList_GET_SIZE(self->buffer), NULL);
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
    keep(self, slots);
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
    {NULL, NULL, 0, NULL},
};

static PyType_Slot fields_slots[] = {
    {Py_tp_new, Fields_new},         {Py_tp_traverse, Fields_traverse}, {Py_tp_clear, Fields_clear},
    {Py_tp_dealloc, Fields_dealloc}, {Py_tp_members, fields_members},   {Py_tp_methods, fields_methods},
    {0, NULL},
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
    core->name_recorder = PyUnicode_InternFromString("recorder");
    core->name_candidate = PyUnicode_InternFromString("candidate");
    core->name_edge = PyUnicode_InternFromString("edge");
    core->name_turn = PyUnicode_InternFromString("turn");
    core->fields = (PyTypeObject *)PyType_FromSpec(&fields_spec);
    if (!core->name_recorder || !core->name_candidate || !core->name_edge || !core->name_turn || !core->fields)
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
