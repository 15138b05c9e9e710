/* The bodies of torch's hooks, as the files beside this one have them in Python.

   A step pays for each of them between torch's own operations, where everything that it touches is cold: so they
   touch little. What is not the plain case (a subclass of a tensor, a mode, several parameter groups) they leave to the
   Python function that they were given for it. */

#include "../../core/recorder.h"

#include <stddef.h>
#include <structmember.h>

enum { FORWARD = 3, FORWARD_NOGRAD = 4, BACKWARD = 5, ZERO_GRAD = 6, STEP = 7, OPTIMIZER_WORK = 10 };
enum { FAILED = -2, UNKNOWN = -1 };
enum { MOST = 8 };

static PyObject *name_call_impl, *name_shape, *name_dtype, *name_is_floating_point, *name_numel, *name_is_cpu, *name_ndim,
    *name_item, *name_tensors, *name_param_groups, *name_lr;

/* --- one callable with what it needs ---------------------------------------------------- */

/* The object met last, its number, and at how many changes it was: most hooks meet one again and again. */
typedef struct {
    PyObject *thing; /* for its address alone */
    PyObject *number;
    unsigned long at;
} Met;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *given[MOST];
    Met met;
    PyObject *dtype; /* met last */
    int floating;    /* whether it is one of floats */
} Hook;

static PyTypeObject *hook_type;

static int
Hook_traverse(Hook *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; i < MOST; i++)
        Py_VISIT(self->given[i]);
    return 0;
}

static void
Hook_dealloc(Hook *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    for (int i = 0; i < MOST; i++)
        Py_XDECREF(self->given[i]);
    Py_XDECREF(self->met.number);
    Py_XDECREF(self->dtype);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef hook_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot hook_slots[] = {
    {Py_tp_call, PyVectorcall_Call}, {Py_tp_traverse, Hook_traverse}, {Py_tp_dealloc, Hook_dealloc},
    {Py_tp_members, hook_members},   {0, NULL},
};

static PyType_Spec hook_spec = {
    "otel_ml.instrument.torch._hooks.Hook",
    sizeof(Hook),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    hook_slots,
};

static PyObject *
make(vectorcallfunc body, PyObject *const *args, Py_ssize_t count, Py_ssize_t needed)
{
    if (count != needed)
        return PyErr_Format(PyExc_TypeError, "a hook that needs %zd things was given %zd", needed, count);
    Hook *self = PyObject_GC_New(Hook, hook_type);
    if (self == NULL)
        return NULL;
    self->vectorcall = body;
    self->met = (Met){NULL, NULL, 0};
    self->dtype = NULL;
    self->floating = 0;
    for (int i = 0; i < MOST; i++) {
        self->given[i] = i < count ? args[i] : NULL;
        Py_XINCREF(self->given[i]);
    }
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* --- what they ask ------------------------------------------------------------------------ */

/* The number that an object is known by, a new reference; NULL without an error where it is not known. */
static PyObject *
known_number(Met *met, PyObject *numbers, PyObject *thing)
{
    if (met->thing != thing || met->at != core->changes) {
        PyObject *key = PyLong_FromVoidPtr(thing);
        PyObject *found = key == NULL ? NULL : PyDict_GetItemWithError(numbers, key);
        Py_XDECREF(key);
        if (found == NULL) {
            PyErr_Clear();
            return NULL;
        }
        met->thing = thing;
        met->at = core->changes;
        Py_INCREF(found);
        Py_XSETREF(met->number, found);
    }
    Py_INCREF(met->number);
    return met->number;
}

/* The same, from `number_of` where it is not known yet; with an error where one must be raised. */
static PyObject *
number_of(Met *met, PyObject *numbers, PyObject *number_of, PyObject *thing)
{
    PyObject *found = known_number(met, numbers, thing);
    if (found == NULL)
        found = PyObject_CallOneArg(number_of, thing);
    if (found == NULL)
        must_raise("numbering");
    return found;
}

static int
is_true(PyObject *question)
{
    PyObject *answer = PyObject_CallNoArgs(question);
    Py_XDECREF(answer);
    if (answer == NULL)
        PyErr_Clear();
    return answer == Py_True;
}

/* Whether a stack of torch's has anything on it; where that cannot be told, it has. */
static int
is_used(PyObject *length)
{
    PyObject *answer = PyObject_CallNoArgs(length);
    long count = answer == NULL ? -1 : PyLong_AsLong(answer);
    Py_XDECREF(answer);
    if (PyErr_Occurred())
        PyErr_Clear();
    return count != 0;
}

/* Lets the error of the program's own code, if there is one, rest while we record. */
typedef struct {
    PyObject *type, *value, *trace;
} Raised;

static inline Raised
set_aside(PyObject *result)
{
    Raised error = {NULL, NULL, NULL};
    if (result == NULL)
        PyErr_Fetch(&error.type, &error.value, &error.trace);
    return error;
}

static inline PyObject *
give_back(PyObject *result, Raised error)
{
    if (!PyErr_Occurred()) {
        if (result == NULL)
            PyErr_Restore(error.type, error.value, error.trace);
        return result;
    }
    if (result == NULL) { /* one came after the program's own, as in a `finally` */
        Raised later;
        PyErr_Fetch(&later.type, &later.value, &later.trace);
        PyErr_NormalizeException(&error.type, &error.value, &error.trace);
        PyErr_NormalizeException(&later.type, &later.value, &later.trace);
        if (later.value != NULL && error.value != NULL && later.value != error.value) {
            Py_INCREF(error.value);
            PyException_SetContext(later.value, error.value);
        }
        PyErr_Restore(later.type, later.value, later.trace);
        Py_XDECREF(error.type);
        Py_XDECREF(error.value);
        Py_XDECREF(error.trace);
    }
    Py_XDECREF(result);
    return NULL;
}

/* original(self, *args, **kwargs) */
static PyObject *
call_method(PyObject *original, PyObject *self, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t count = PyTuple_GET_SIZE(args);
    if (count == 0 && PyDict_GET_SIZE(kwargs) == 0)
        return PyObject_CallOneArg(original, self);
    PyObject *all = PyTuple_New(count + 1);
    if (all == NULL)
        return NULL;
    Py_INCREF(self);
    PyTuple_SET_ITEM(all, 0, self);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *one = PyTuple_GET_ITEM(args, i);
        Py_INCREF(one);
        PyTuple_SET_ITEM(all, i + 1, one);
    }
    PyObject *result = PyObject_Call(original, all, kwargs);
    Py_DECREF(all);
    return result;
}

static int
are_call(PyObject *const *args, size_t flagged, PyObject *names, Py_ssize_t before)
{
    if (PyVectorcall_NARGS(flagged) == before + 2 && names == NULL && PyTuple_Check(args[before])
        && PyDict_Check(args[before + 1]))
        return 1;
    PyErr_SetString(PyExc_TypeError, "a hook is called with the arguments as a tuple and a dict");
    return 0;
}

/* --- a root's forward --------------------------------------------------------------------- */

enum { F_NUMBERS, F_NUMBER_OF, F_TENSOR, F_IS_GRAD_ENABLED, F_IS_TRACED, F_MODES, F_COMPILED, F_COUNT };

/* Whether a tensor holds floats, which its dtype says: of the one met last that is known. -1 with an error. */
static int
is_floating(Hook *self, PyObject *tensor)
{
    PyObject *dtype = PyObject_GetAttr(tensor, name_dtype);
    if (dtype == NULL)
        return -1;
    if (dtype == self->dtype) {
        Py_DECREF(dtype);
        return self->floating;
    }
    PyObject *floating = PyObject_GetAttr(dtype, name_is_floating_point);
    if (floating == NULL) {
        Py_DECREF(dtype);
        return -1;
    }
    self->floating = floating == Py_True;
    Py_DECREF(floating);
    Py_XSETREF(self->dtype, dtype);
    return self->floating;
}

/* A tensor's first dimension, as its base answers `len()` (`torch.Tensor` itself does so in Python, by its shape); -1 with
   an error. */
static Py_ssize_t
rows_of(PyObject *tensor)
{
    PyTypeObject *base = Py_TYPE(tensor)->tp_base;
    PyMappingMethods *mapping = base == NULL ? NULL : base->tp_as_mapping;
    return mapping == NULL || mapping->mp_length == NULL ? 0 : mapping->mp_length(tensor);
}

/* samples | tokens << 32 of a call's first argument, a new reference; NULL without an error where it tells none. */
static PyObject *
size_of(Hook *self, PyObject *first)
{
    if ((PyObject *)Py_TYPE(first) != self->given[F_TENSOR] || is_used(self->given[F_MODES]))
        return NULL;
    int floating = is_floating(self, first);
    PyObject *shape = floating > 0 ? NULL : PyObject_GetAttr(first, name_shape);
    if (shape == NULL) { /* floats tell no tokens, and a nested tensor has no shape */
        PyErr_Clear();
        Py_ssize_t rows = rows_of(first);
        if (rows > 0)
            return PyLong_FromSsize_t(rows);
        PyErr_Clear();
        shape = PyObject_GetAttr(first, name_shape);
    }
    PyObject *size = NULL;
    if (shape != NULL && PyTuple_Check(shape) && PyTuple_GET_SIZE(shape)) {
        size = PyTuple_GET_ITEM(shape, 0);
        Py_INCREF(size);
        if (PyTuple_GET_SIZE(shape) == 2 && floating == 0) {
            PyObject *tokens = PyObject_CallMethodNoArgs(first, name_numel);
            PyObject *by = PyLong_FromLong(32);
            PyObject *high = tokens == NULL || by == NULL ? NULL : PyNumber_Lshift(tokens, by);
            Py_SETREF(size, high == NULL ? NULL : PyNumber_Or(size, high));
            Py_XDECREF(tokens);
            Py_XDECREF(by);
            Py_XDECREF(high);
        }
    }
    Py_XDECREF(shape);
    if (PyErr_Occurred())
        PyErr_Clear();
    return size;
}

static PyObject *
call_module(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    PyObject *compiled = self->given[F_COMPILED];
    if (compiled == Py_None)
        return PyObject_VectorcallMethod(name_call_impl, args, flagged & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
    return PyObject_Vectorcall(compiled, args + 1, PyVectorcall_NARGS(flagged) - 1, names);
}

static PyObject *
forward_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    Py_ssize_t count = PyVectorcall_NARGS(flagged);
    if (count < 1) {
        PyErr_SetString(PyExc_TypeError, "a module's call needs the module");
        return NULL;
    }
    if (is_true(self->given[F_IS_TRACED])) /* by torch.jit: a shape read here would be a node in its graph */
        return call_module(self, args, flagged, names);
    RecorderFields *recorder = this_thread();
    if (recorder == NULL)
        return PyErr_Occurred() ? NULL : call_module(self, args, flagged, names);
    int grad = is_true(self->given[F_IS_GRAD_ENABLED]), raises = 0;
    if (grad)
        raises = begins(recorder);
    else if (recorder->state != CLOSED || (recorder->merged_from != NULL && recorder->merged_from != Py_None))
        raises = ask(recorder, core->name_edge, NULL);
    if (raises) {
        Py_DECREF(recorder);
        return NULL;
    }
    PyObject *size = count > 1 ? size_of(self, args[1]) : NULL;
    long long start = now();
    PyObject *result = call_module(self, args, flagged, names);
    long long end = now();
    Raised error = set_aside(result);
    if (error.type != NULL && PyErr_GivenExceptionMatches(error.type, PyExc_Exception))
        Py_XSETREF(size, PyLong_FromLong(FAILED));
    else if (size == NULL)
        size = PyLong_FromLong(UNKNOWN);
    PyObject *number = number_of(&self->met, self->given[F_NUMBERS], self->given[F_NUMBER_OF], args[0]);
    if (!PyErr_Occurred())
        record(recorder, grad ? FORWARD : FORWARD_NOGRAD, start, end, number, size);
    Py_XDECREF(number);
    Py_XDECREF(size);
    Py_DECREF(recorder);
    return give_back(result, error);
}

static PyObject *
forward(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    return make((vectorcallfunc)forward_body, args, count, F_COUNT);
}

/* --- backward ------------------------------------------------------------------------------- */

enum { B_ORIGINAL, B_TENSOR, B_FUNCTIONS, B_DISPATCHES, B_READ, B_COUNT };

/* The plain loss that backward is given: a float, a new reference; NULL without an error where it is not plain. Nothing
   here runs Python. */
static PyObject *
plain_loss(Hook *self, PyObject *given)
{
    if ((PyObject *)Py_TYPE(given) != self->given[B_TENSOR] || is_used(self->given[B_FUNCTIONS])
        || is_used(self->given[B_DISPATCHES]))
        return NULL;
    PyObject *loss = NULL;
    PyObject *on_cpu = PyObject_GetAttr(given, name_is_cpu);
    PyObject *dims = PyObject_GetAttr(given, name_ndim);
    if (on_cpu == Py_True && dims != NULL && PyLong_AsLong(dims) == 0)
        loss = PyObject_CallMethodNoArgs(given, name_item);
    Py_XDECREF(on_cpu);
    Py_XDECREF(dims);
    if (PyErr_Occurred())
        PyErr_Clear();
    if (loss != NULL && !PyFloat_CheckExact(loss))
        Py_CLEAR(loss);
    return loss;
}

static PyObject *
backward_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    if (!are_call(args, flagged, names, 0))
        return NULL;
    RecorderFields *recorder = this_thread();
    if (recorder == NULL)
        return PyErr_Occurred() ? NULL : PyObject_Call(self->given[B_ORIGINAL], args[0], args[1]);
    if (begins(recorder)) {
        Py_DECREF(recorder);
        return NULL;
    }
    PyObject *given = PyTuple_GET_SIZE(args[0]) ? PyTuple_GET_ITEM(args[0], 0)
                                                : PyDict_GetItemWithError(args[1], name_tensors);
    PyObject *loss = given == NULL ? NULL : plain_loss(self, given);
    if (loss == NULL && given != NULL)
        loss = PyObject_CallOneArg(self->given[B_READ], given);
    if (must_raise("reading the loss")) {
        Py_DECREF(recorder);
        return NULL;
    }
    long long start = now();
    PyObject *result = PyObject_Call(self->given[B_ORIGINAL], args[0], args[1]);
    long long end = now();
    Raised error = set_aside(result);
    record(recorder, BACKWARD, start, end, loss == NULL ? Py_None : loss, Py_None);
    Py_XDECREF(loss);
    Py_DECREF(recorder);
    return give_back(result, error);
}

static PyObject *
backward(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    return make((vectorcallfunc)backward_body, args, count, B_COUNT);
}

/* --- an optimizer's step and zero_grad ------------------------------------------------------- */

enum { O_ORIGINAL, O_NUMBERS, O_NUMBER_OF, O_RATES, O_COUNT };

/* The learning rate of an optimizer's only group, where it is a float; else what `rates` says. A new reference; NULL
   where there is none, with an error where one must be raised. */
static PyObject *
rate_of(Hook *self, PyObject *optimizer)
{
    PyObject *rate = NULL;
    PyObject *groups = PyObject_GetAttr(optimizer, name_param_groups);
    if (groups != NULL && PyList_CheckExact(groups) && PyList_GET_SIZE(groups) == 1
        && PyDict_CheckExact(PyList_GET_ITEM(groups, 0)))
        rate = PyDict_GetItemWithError(PyList_GET_ITEM(groups, 0), name_lr);
    if (rate != NULL && PyFloat_CheckExact(rate)) {
        Py_INCREF(rate);
        Py_DECREF(groups);
        return rate;
    }
    Py_XDECREF(groups);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return NULL;
        PyErr_Clear(); /* `rates` will meet it, and count it */
    }
    rate = PyObject_CallOneArg(self->given[O_RATES], optimizer);
    if (rate == NULL)
        must_raise("reading the learning rate");
    return rate;
}

static PyObject *
step_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    if (!are_call(args, flagged, names, 1))
        return NULL;
    PyObject *optimizer = args[0];
    RecorderFields *recorder = this_thread();
    if (recorder == NULL || recorder->stepping) { /* inside another step: a subclass calls its base's; one turn */
        Py_XDECREF(recorder);
        if (PyErr_Occurred())
            return NULL;
        return call_method(self->given[O_ORIGINAL], optimizer, args[1], args[2]);
    }
    recorder->stepping = 1;
    long long start = now();
    PyObject *result = call_method(self->given[O_ORIGINAL], optimizer, args[1], args[2]);
    long long end = now();
    recorder->stepping = 0;
    if (result == NULL) {
        Raised error = set_aside(result);
        record(recorder, OPTIMIZER_WORK, start, end, Py_None, Py_None);
        Py_DECREF(recorder);
        return give_back(result, error);
    }
    PyObject *number = number_of(&self->met, self->given[O_NUMBERS], self->given[O_NUMBER_OF], optimizer);
    PyObject *rate = PyErr_Occurred() ? NULL : rate_of(self, optimizer);
    if (number == NULL && !PyErr_Occurred())
        number = PyLong_FromLong(UNKNOWN);
    if (!PyErr_Occurred() && turn(recorder, number) == 0)
        record(recorder, STEP, start, end, number, rate == NULL ? Py_None : rate);
    Py_XDECREF(number);
    Py_XDECREF(rate);
    Py_DECREF(recorder);
    return give_back(result, (Raised){NULL, NULL, NULL});
}

static PyObject *
step(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    return make((vectorcallfunc)step_body, args, count, O_COUNT);
}

static PyObject *
zero_grad_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    if (!are_call(args, flagged, names, 1))
        return NULL;
    RecorderFields *recorder = this_thread();
    if (recorder == NULL)
        return PyErr_Occurred() ? NULL : call_method(self->given[O_ORIGINAL], args[0], args[1], args[2]);
    if (begins(recorder)) {
        Py_DECREF(recorder);
        return NULL;
    }
    long long start = now();
    PyObject *result = call_method(self->given[O_ORIGINAL], args[0], args[1], args[2]);
    long long end = now();
    Raised error = set_aside(result);
    PyObject *number = known_number(&self->met, self->given[O_NUMBERS], args[0]);
    if (number == NULL)
        number = PyLong_FromLong(UNKNOWN);
    record(recorder, ZERO_GRAD, start, end, number, Py_None);
    Py_XDECREF(number);
    Py_DECREF(recorder);
    return give_back(result, error);
}

static PyObject *
zero_grad(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    return make((vectorcallfunc)zero_grad_body, args, count, O_NUMBER_OF);
}

/* --- the slot on the class of a root ----------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *call;
    PyObject *known; /* the numbers of those who are answered; NULL: every instance is */
    Met met;
} Slot;

static PyObject *
Slot_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *call, *known = NULL;
    if (!PyArg_ParseTuple(args, "O|O!", &call, &PyDict_Type, &known))
        return NULL;
    Slot *self = (Slot *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(call);
    self->call = call;
    Py_XINCREF(known);
    self->known = known;
    return (PyObject *)self;
}

static int
Slot_traverse(Slot *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->call);
    Py_VISIT(self->known);
    return 0;
}

static void
Slot_dealloc(Slot *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->call);
    Py_XDECREF(self->known);
    Py_XDECREF(self->met.number);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
Slot_get(Slot *self, PyObject *module, PyObject *owner)
{
    if (module == NULL || module == Py_None)
        Py_RETURN_NONE;
    if (self->known != NULL) {
        PyObject *number = known_number(&self->met, self->known, module);
        if (number == NULL)
            Py_RETURN_NONE;
        Py_DECREF(number);
    }
    return PyMethod_New(self->call, module);
}

static PyObject *
Slot_answer(Slot *self, PyObject *module)
{
    return Slot_get(self, module, NULL);
}

static PyObject *
Slot_reduce(Slot *self, PyObject *unused)
{
    return Py_BuildValue("(O())", (PyObject *)Py_TYPE(Py_None));
}

static PyMethodDef slot_methods[] = {
    {"answer", (PyCFunction)(void (*)(void))Slot_answer, METH_O, NULL},
    {"__reduce__", (PyCFunction)(void (*)(void))Slot_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slot_slots[] = {
    {Py_tp_new, Slot_new},       {Py_tp_traverse, Slot_traverse}, {Py_tp_dealloc, Slot_dealloc},
    {Py_tp_descr_get, Slot_get}, {Py_tp_methods, slot_methods},   {0, NULL},
};

static PyType_Spec slot_spec = {
    "otel_ml.instrument.torch._hooks.Slot", sizeof(Slot), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slot_slots,
};

/* --- the module -------------------------------------------------------------------------------- */

/* Dynamo looks at the type's `__get__`: a Python function it can trace, of C it would take the slot for the value. So
   there is one to be looked at, while the interpreter goes on calling C. */
static PyObject *
show(PyObject *module, PyObject *get)
{
    PyObject *type = PyObject_GetAttrString(module, "Slot");
    int failed = type == NULL || PyDict_SetItemString(((PyTypeObject *)type)->tp_dict, "__get__", get) < 0;
    if (!failed)
        PyType_Modified((PyTypeObject *)type);
    Py_XDECREF(type);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"show", show, METH_O, NULL},
    {"forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL, NULL},
    {"backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL, NULL},
    {"step", (PyCFunction)(void (*)(void))step, METH_FASTCALL, NULL},
    {"zero_grad", (PyCFunction)(void (*)(void))zero_grad, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "otel_ml.instrument.torch._hooks",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__hooks(void)
{
    static const struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&name_call_impl, "_call_impl"}, {&name_shape, "shape"},
        {&name_dtype, "dtype"}, {&name_is_floating_point, "is_floating_point"},
        {&name_numel, "numel"}, {&name_is_cpu, "is_cpu"},
        {&name_ndim, "ndim"}, {&name_item, "item"},
        {&name_tensors, "tensors"}, {&name_param_groups, "param_groups"},
        {&name_lr, "lr"},
    };
    if (find_core() < 0)
        return NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return NULL;
    hook_type = (PyTypeObject *)PyType_FromSpec(&hook_spec);
    PyObject *slot = PyType_FromSpec(&slot_spec);
    PyObject *module = hook_type == NULL || slot == NULL ? NULL : PyModule_Create(&definition);
    if (module == NULL || PyModule_AddObject(module, "Slot", slot) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
