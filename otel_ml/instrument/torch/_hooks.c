/* The bodies of torch's hooks, as the files beside this one have them in Python.

   A step pays for each of them between torch's own operations, where everything that it touches is cold: so they
   touch little. What is not the plain case (a subclass of a tensor, a mode, several parameter groups) they leave to the
   Python function that they were given for it. */

#include "../../core/recorder.h"

#include <dlfcn.h>
#include <stddef.h>
#include <structmember.h>

enum { FORWARD = 3, FORWARD_NOGRAD = 4, BACKWARD = 5, ZERO_GRAD = 6, STEP = 7, OPTIMIZER_WORK = 10 };
enum { FAILED = -2 };
enum { MOST = 8 };

static PyObject *name_call_impl, *name_shape, *name_is_floating_point, *name_numel, *name_item, *name_tensors,
    *name_param_groups, *name_lr;

/* --- one callable with what it needs ---------------------------------------------------- */

/* The object met last, its number, and at how many changes it was: most hooks meet one again and again. */
typedef struct {
    PyObject *thing; /* for its address alone */
    PyObject *number;
    unsigned long at;
} Met;

/* What a function without arguments runs, where it is C: Python puts more between than most of torch's answers take. */
typedef struct {
    PyCFunction run;
    PyObject *self;
} Direct;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *given[MOST];
    Direct direct[MOST];
    Met met;
    PyObject *dtype; /* met last */
    int floating;    /* whether it is one of floats */
    Py_ssize_t rows; /* met last */
    PyObject *size;  /* the same, as an object */
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
    Py_XDECREF(self->size);
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

static Direct
directly(PyObject *function)
{
    if (function == NULL || !PyCFunction_CheckExact(function) || PyCFunction_GET_FLAGS(function) != METH_NOARGS)
        return (Direct){NULL, NULL};
    return (Direct){PyCFunction_GET_FUNCTION(function), PyCFunction_GET_SELF(function)};
}

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
    self->rows = 0;
    self->size = NULL;
    for (int i = 0; i < MOST; i++) {
        self->given[i] = i < count ? args[i] : NULL;
        Py_XINCREF(self->given[i]);
        self->direct[i] = directly(self->given[i]);
    }
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* --- what they ask ------------------------------------------------------------------------ */

static COLD PyObject *
found_number(Met *met, PyObject *numbers, PyObject *thing)
{
    PyObject *key = PyLong_FromVoidPtr(thing);
    PyObject *found = key == NULL ? NULL : PyDict_GetItemWithError(numbers, key);
    Py_XDECREF(key);
    if (found == NULL) {
        PyErr_Clear();
        return NULL;
    }
    met->thing = thing;
    met->at = core->changes;
    hold(&met->number, found);
    Py_INCREF(found);
    return found;
}

/* The number that an object is known by, a new reference; NULL without an error where it is not known. */
static inline PyObject *
known_number(Met *met, PyObject *numbers, PyObject *thing)
{
    if (met->thing != thing || met->at != core->changes)
        return found_number(met, numbers, thing);
    Py_INCREF(met->number);
    return met->number;
}

static COLD PyObject *
new_number(PyObject *number_of, PyObject *thing)
{
    PyObject *number = PyObject_CallOneArg(number_of, thing);
    if (number == NULL)
        must_raise("numbering");
    return number;
}

/* The same, from `number_of` where it is not known yet; with an error where one must be raised. */
static inline PyObject *
number_of(Met *met, PyObject *numbers, PyObject *number_of, PyObject *thing)
{
    PyObject *found = known_number(met, numbers, thing);
    return found == NULL ? new_number(number_of, thing) : found;
}

static inline PyObject *
answer_of(Hook *self, int question)
{
    Direct direct = self->direct[question];
    return direct.run != NULL ? direct.run(direct.self, NULL) : PyObject_CallNoArgs(self->given[question]);
}

static inline int
is_true(Hook *self, int question)
{
    PyObject *answer = answer_of(self, question);
    Py_XDECREF(answer);
    if (answer == NULL)
        PyErr_Clear();
    return answer == Py_True;
}

/* Whether a stack of torch's has anything on it; where that cannot be told, it has. */
static inline int
is_used(Hook *self, int length)
{
    PyObject *answer = answer_of(self, length);
    Py_XDECREF(answer);
    if (answer == NULL)
        PyErr_Clear();
    return answer != core->zero;
}

/* `const std::shared_ptr<TracingState> &torch::jit::tracer::getTracingState()`, of which Python's `_is_tracing()` says
   whether it is null: what leads there from Python takes a hundred times as long. NULL where torch exports no such. */
static void *const *(*tracing_state)(void);

static PyObject *
find_in(PyObject *module, PyObject *library)
{
    const char *path = PyUnicode_AsUTF8(library);
    if (path == NULL)
        return NULL;
    void *torch = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (torch != NULL) {
        *(void **)&tracing_state = dlsym(torch, "_ZN5torch3jit6tracer15getTracingStateEv");
        dlclose(torch); /* which the program has, too */
    }
    return PyBool_FromLong(tracing_state != NULL);
}

static inline int
is_traced(Hook *self, int question)
{
    return tracing_state != NULL ? *tracing_state() != NULL : is_true(self, question);
}

/* What reads a tensor's attribute, and what its `item()` runs: as its class has them in C, or NULL. */
typedef struct {
    getter read;
    void *closure;
    PyObject *name;
} Attribute;

static Attribute dtype, is_cpu, ndim;
static PyCFunction item;

static void
know_attribute(Attribute *attribute, PyObject *tensor, const char *text)
{
    PyObject *known = PyObject_GetAttrString(tensor, text);
    attribute->name = PyUnicode_InternFromString(text);
    if (known != NULL && Py_IS_TYPE(known, &PyGetSetDescr_Type)) {
        const PyGetSetDef *read = ((PyGetSetDescrObject *)known)->d_getset;
        attribute->read = read->get;
        attribute->closure = read->closure;
    }
    Py_XDECREF(known);
}

/* Look once at the class that all plain tensors are of. */
static void
know(PyObject *tensor)
{
    if (is_cpu.name != NULL)
        return;
    know_attribute(&dtype, tensor, "dtype");
    know_attribute(&is_cpu, tensor, "is_cpu");
    know_attribute(&ndim, tensor, "ndim");
    PyObject *known = PyObject_GetAttr(tensor, name_item);
    if (known != NULL && Py_IS_TYPE(known, &PyMethodDescr_Type)
        && ((PyMethodDescrObject *)known)->d_method->ml_flags == METH_NOARGS)
        item = ((PyMethodDescrObject *)known)->d_method->ml_meth;
    Py_XDECREF(known);
    PyErr_Clear();
}

/* Of a plain tensor. */
static inline PyObject *
attribute_of(PyObject *tensor, Attribute attribute)
{
    return attribute.read != NULL ? attribute.read(tensor, attribute.closure) : PyObject_GetAttr(tensor, attribute.name);
}

static inline PyObject *
item_of(PyObject *tensor)
{
    return item != NULL ? item(tensor, NULL) : PyObject_CallMethodNoArgs(tensor, name_item);
}

/* The error of the program's own code, if there is one: it rests while we record. */
typedef struct {
    PyObject *type, *value, *trace;
} Raised;

static COLD Raised
set_aside(void)
{
    Raised error;
    PyErr_Fetch(&error.type, &error.value, &error.trace);
    return error;
}

/* What a hook returns where the program's own code raised, or something must be raised. */
static COLD PyObject *
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

static COLD PyObject *
call_with_more(PyObject *original, PyObject *self, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t count = PyTuple_GET_SIZE(args);
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

/* original(self, *args, **kwargs) */
static inline PyObject *
call_method(PyObject *original, PyObject *self, PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) || PyDict_GET_SIZE(kwargs))
        return call_with_more(original, self, args, kwargs);
    PyObject *given[] = {NULL, self};
    return PyObject_Vectorcall(original, given + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

/* Without a recorder nothing is kept, and nothing else changes; an error that must be raised is. */
static COLD PyObject *
call_alone(PyObject *original, PyObject *const *args, size_t flagged, PyObject *names)
{
    return PyErr_Occurred() ? NULL : PyObject_Vectorcall(original, args, flagged, names);
}

static COLD PyObject *
leave(RecorderFields *recorder)
{
    Py_DECREF(recorder);
    return NULL;
}

/* --- a root's forward --------------------------------------------------------------------- */

enum { F_NUMBERS, F_NUMBER_OF, F_TENSOR, F_IS_GRAD_ENABLED, F_IS_TRACED, F_MODES, F_COMPILED, F_COUNT };

static COLD int
met_dtype(Hook *self, PyObject *kind)
{
    PyObject *floating = PyObject_GetAttr(kind, name_is_floating_point);
    if (floating == NULL)
        return -1;
    self->floating = floating == Py_True;
    Py_DECREF(floating);
    hold(&self->dtype, kind);
    return self->floating;
}

/* Whether a tensor holds floats, which its dtype says: of the one met last that is known. -1 with an error. */
static inline int
is_floating(Hook *self, PyObject *tensor)
{
    PyObject *kind = attribute_of(tensor, dtype);
    if (kind == NULL)
        return -1;
    int floating = kind == self->dtype ? self->floating : met_dtype(self, kind);
    Py_DECREF(kind);
    return floating;
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

/* samples | tokens << 32 of a tensor's shape; floats tell no tokens. */
static COLD PyObject *
size_by_shape(PyObject *first, int floating)
{
    PyErr_Clear();
    PyObject *shape = PyObject_GetAttr(first, name_shape);
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
    if (shape == NULL) { /* a nested tensor has none */
        PyErr_Clear();
        Py_ssize_t rows = rows_of(first);
        size = rows > 0 ? PyLong_FromSsize_t(rows) : NULL;
    }
    Py_XDECREF(shape);
    if (PyErr_Occurred())
        PyErr_Clear();
    return size;
}

/* The size of a call's first argument, a new reference; NULL without an error where it tells none. */
static inline PyObject *
size_of(Hook *self, PyObject *first)
{
    if ((PyObject *)Py_TYPE(first) != self->given[F_TENSOR] || is_used(self, F_MODES))
        return NULL;
    int floating = is_floating(self, first);
    if (floating <= 0)
        return size_by_shape(first, floating);
    Py_ssize_t rows = rows_of(first);
    if (rows <= 0)
        return size_by_shape(first, floating);
    if (rows != self->rows) {
        Py_XSETREF(self->size, PyLong_FromSsize_t(rows));
        self->rows = self->size == NULL ? 0 : rows;
    }
    Py_XINCREF(self->size);
    return self->size;
}

static PyObject *
call_module(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    PyObject *compiled = self->given[F_COMPILED];
    if (compiled == Py_None)
        return PyObject_VectorcallMethod(name_call_impl, args, flagged & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
    return PyObject_Vectorcall(compiled, args + 1, PyVectorcall_NARGS(flagged) - 1, names);
}

/* A forward that is not recorded: one that torch.jit traces (a shape read here would be a node in its graph), or one
   without a recorder. */
static COLD PyObject *
forward_alone(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    if (PyVectorcall_NARGS(flagged) < 1)
        return PyErr_Format(PyExc_TypeError, "a module's call needs the module");
    return PyErr_Occurred() ? NULL : call_module(self, args, flagged, names);
}

/* What a forward that raised tells in place of its size. */
static COLD PyObject *
failed(Raised error, PyObject *size)
{
    if (PyErr_GivenExceptionMatches(error.type, PyExc_Exception))
        Py_XSETREF(size, PyLong_FromLong(FAILED));
    else if (size == NULL)
        hold(&size, core->unknown);
    return size;
}

static PyObject *
forward_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    Py_ssize_t count = PyVectorcall_NARGS(flagged);
    if (count < 1 || is_traced(self, F_IS_TRACED))
        return forward_alone(self, args, flagged, names);
    RecorderFields *recorder = this_thread();
    if (recorder == NULL)
        return forward_alone(self, args, flagged, names);
    int grad = is_true(self, F_IS_GRAD_ENABLED), raises = 0;
    if (grad)
        raises = begins(recorder);
    else if (recorder->state != CLOSED || (recorder->merged_from != NULL && recorder->merged_from != Py_None))
        raises = ask(recorder, core->name_edge, NULL);
    if (raises)
        return leave(recorder);
    PyObject *size = count > 1 ? size_of(self, args[1]) : NULL;
    long long start = now();
    PyObject *result = call_module(self, args, flagged, names);
    long long end = now();
    Raised error = {NULL, NULL, NULL};
    if (result == NULL) {
        error = set_aside();
        size = failed(error, size);
    }
    else if (size == NULL) {
        hold(&size, core->unknown);
    }
    PyObject *number = number_of(&self->met, self->given[F_NUMBERS], self->given[F_NUMBER_OF], args[0]);
    if (number != NULL || !PyErr_Occurred())
        record(recorder, grad ? FORWARD : FORWARD_NOGRAD, start, end, number, size);
    Py_XDECREF(size);
    Py_DECREF(recorder);
    if (result == NULL || number == NULL) {
        Py_XDECREF(number);
        return give_back(result, error);
    }
    Py_DECREF(number);
    return result;
}

static PyObject *
forward(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count == F_COUNT)
        know(args[F_TENSOR]);
    return make((vectorcallfunc)forward_body, args, count, F_COUNT);
}

/* --- backward ------------------------------------------------------------------------------- */

enum { B_ORIGINAL, B_TENSOR, B_FUNCTIONS, B_DISPATCHES, B_READ, B_COUNT };

/* The plain loss that backward is given: a float, a new reference; NULL without an error where it is not plain. Nothing
   here runs Python. */
static inline PyObject *
plain_loss(Hook *self, PyObject *given)
{
    if ((PyObject *)Py_TYPE(given) != self->given[B_TENSOR] || is_used(self, B_FUNCTIONS)
        || is_used(self, B_DISPATCHES))
        return NULL;
    PyObject *on_cpu = attribute_of(given, is_cpu);
    PyObject *dims = attribute_of(given, ndim);
    PyObject *loss = on_cpu == Py_True && dims == core->zero ? item_of(given) : NULL;
    Py_XDECREF(on_cpu);
    Py_XDECREF(dims);
    if (loss == NULL)
        PyErr_Clear();
    else if (!PyFloat_CheckExact(loss))
        Py_CLEAR(loss);
    return loss;
}

static COLD PyObject *
read_loss(Hook *self, PyObject *given)
{
    PyObject *loss = PyObject_CallOneArg(self->given[B_READ], given);
    if (loss == NULL)
        must_raise("reading the loss");
    return loss;
}

static COLD PyObject *
named(PyObject *const *args, size_t flagged, PyObject *names, PyObject *name)
{
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++)
        if (PyUnicode_Compare(PyTuple_GET_ITEM(names, i), name) == 0)
            return args[PyVectorcall_NARGS(flagged) + i];
    return NULL;
}

static PyObject *
backward_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    PyObject *original = self->given[B_ORIGINAL], *loss = NULL;
    RecorderFields *recorder = this_thread();
    if (recorder == NULL)
        return call_alone(original, args, flagged, names);
    if (begins(recorder))
        return leave(recorder);
    PyObject *given = PyVectorcall_NARGS(flagged) ? args[0] : named(args, flagged, names, name_tensors);
    if (given != NULL && (loss = plain_loss(self, given)) == NULL && (loss = read_loss(self, given)) == NULL
        && PyErr_Occurred())
        return leave(recorder);
    if (loss == NULL)
        hold(&loss, Py_None);
    long long start = now();
    PyObject *result = PyObject_Vectorcall(original, args, flagged, names);
    long long end = now();
    record(recorder, BACKWARD, start, end, loss, Py_None);
    Py_DECREF(loss);
    Py_DECREF(recorder);
    return result;
}

static PyObject *
backward(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count == B_COUNT)
        know(args[B_TENSOR]);
    return make((vectorcallfunc)backward_body, args, count, B_COUNT);
}

/* --- an optimizer's step and zero_grad ------------------------------------------------------- */

enum { O_ORIGINAL, O_NUMBERS, O_NUMBER_OF, O_RATES, O_COUNT };

static COLD PyObject *
read_rate(Hook *self, PyObject *optimizer)
{
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return NULL;
        PyErr_Clear(); /* `rates` will meet it, and count it */
    }
    PyObject *rate = PyObject_CallOneArg(self->given[O_RATES], optimizer);
    if (rate == NULL)
        must_raise("reading the learning rate");
    return rate;
}

/* The learning rate of an optimizer's only group, where it is a float; else what `rates` says. A new reference; NULL
   where there is none, with an error where one must be raised. */
static inline PyObject *
rate_of(Hook *self, PyObject *optimizer)
{
    PyObject *rate = NULL;
    PyObject *groups = PyObject_GetAttr(optimizer, name_param_groups);
    if (groups != NULL && PyList_CheckExact(groups) && PyList_GET_SIZE(groups) == 1
        && PyDict_CheckExact(PyList_GET_ITEM(groups, 0)))
        rate = PyDict_GetItemWithError(PyList_GET_ITEM(groups, 0), name_lr);
    if (rate != NULL && !PyFloat_CheckExact(rate))
        rate = NULL;
    Py_XINCREF(rate);
    Py_XDECREF(groups);
    return rate == NULL ? read_rate(self, optimizer) : rate;
}

/* Inside another step (a subclass calls its base's) it is one turn; and without a recorder none is counted. */
static COLD PyObject *
step_alone(Hook *self, RecorderFields *recorder, PyObject *const *args)
{
    Py_XDECREF(recorder);
    return PyErr_Occurred() ? NULL : call_method(self->given[O_ORIGINAL], args[0], args[1], args[2]);
}

static COLD PyObject *
failed_step(RecorderFields *recorder, long long start, long long end)
{
    Raised error = set_aside();
    record(recorder, OPTIMIZER_WORK, start, end, Py_None, Py_None);
    Py_DECREF(recorder);
    return give_back(NULL, error);
}

static PyObject *
step_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    if (PyVectorcall_NARGS(flagged) != 3 || names != NULL || !PyTuple_Check(args[1]) || !PyDict_Check(args[2]))
        return PyErr_Format(PyExc_TypeError, "a step is given the optimizer, a tuple and a dict");
    RecorderFields *recorder = this_thread();
    if (recorder == NULL || recorder->stepping)
        return step_alone(self, recorder, args);
    recorder->stepping = 1;
    long long start = now();
    PyObject *result = call_method(self->given[O_ORIGINAL], args[0], args[1], args[2]);
    long long end = now();
    recorder->stepping = 0;
    if (result == NULL)
        return failed_step(recorder, start, end);
    PyObject *number = number_of(&self->met, self->given[O_NUMBERS], self->given[O_NUMBER_OF], args[0]);
    PyObject *rate = number == NULL && PyErr_Occurred() ? NULL : rate_of(self, args[0]);
    int raises = rate == NULL && PyErr_Occurred();
    if (number == NULL)
        hold(&number, core->unknown);
    if (!raises && (raises = turn(recorder, number)) == 0)
        record(recorder, STEP, start, end, number, rate == NULL ? Py_None : rate);
    Py_DECREF(number);
    Py_XDECREF(rate);
    Py_DECREF(recorder);
    return raises ? give_back(result, (Raised){NULL, NULL, NULL}) : result;
}

static PyObject *
step(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    return make((vectorcallfunc)step_body, args, count, O_COUNT);
}

static COLD PyObject *
failed_zero_grad(Hook *self, RecorderFields *recorder, PyObject *optimizer, long long start, long long end)
{
    Raised error = set_aside();
    PyObject *number = known_number(&self->met, self->given[O_NUMBERS], optimizer);
    record(recorder, ZERO_GRAD, start, end, number == NULL ? core->unknown : number, Py_None);
    Py_XDECREF(number);
    Py_DECREF(recorder);
    return give_back(NULL, error);
}

static PyObject *
zero_grad_body(Hook *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    RecorderFields *recorder = PyVectorcall_NARGS(flagged) ? this_thread() : NULL;
    if (recorder == NULL)
        return call_alone(self->given[O_ORIGINAL], args, flagged, names);
    if (begins(recorder))
        return leave(recorder);
    long long start = now();
    PyObject *result = PyObject_Vectorcall(self->given[O_ORIGINAL], args, flagged, names);
    long long end = now();
    if (result == NULL)
        return failed_zero_grad(self, recorder, args[0], start, end);
    PyObject *number = known_number(&self->met, self->given[O_NUMBERS], args[0]);
    record(recorder, ZERO_GRAD, start, end, number == NULL ? core->unknown : number, Py_None);
    Py_XDECREF(number);
    Py_DECREF(recorder);
    return result;
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
    {"find_in", find_in, METH_O, NULL},
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
        {&name_is_floating_point, "is_floating_point"}, {&name_numel, "numel"},
        {&name_item, "item"}, {&name_tensors, "tensors"},
        {&name_param_groups, "param_groups"}, {&name_lr, "lr"},
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
