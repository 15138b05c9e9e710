/* Arithmetic on lists of numbers, as `columns.py` has it in Python. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

static int
are_lists(PyObject *const *args, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        if (!PyList_CheckExact(args[i])) {
            PyErr_SetString(PyExc_TypeError, "a column is a list");
            return 0;
        }
    return 1;
}

/* A float's or an int's value; -1 with an error for anything else: no code of theirs runs that could change a list. */
static double
number_of(PyObject *value)
{
    if (PyFloat_CheckExact(value))
        return PyFloat_AS_DOUBLE(value);
    if (PyLong_CheckExact(value))
        return PyLong_AsDouble(value);
    PyErr_SetString(PyExc_TypeError, "a value is no number");
    return -1.0;
}

typedef struct {
    PyObject *column;
    Py_ssize_t first;
    int sign;
} Term;

/* The terms that a tuple says, each checked to stay within its column; NULL with an error. */
static Term *
read_terms(PyObject *said, PyObject *const *columns, Py_ssize_t reach)
{
    Py_ssize_t several = PyTuple_GET_SIZE(said);
    Term *terms = PyMem_New(Term, several + 1);
    if (terms == NULL)
        return (Term *)PyErr_NoMemory();
    for (Py_ssize_t t = 0; t < several; t++) {
        int of_ends, negative;
        PyObject *term = PyTuple_GET_ITEM(said, t);
        if (!PyTuple_CheckExact(term))
            PyErr_SetString(PyExc_TypeError, "a term is a tuple");
        else if (PyArg_ParseTuple(term, "npp", &terms[t].first, &of_ends, &negative)) {
            terms[t].column = columns[of_ends ? 1 : 0];
            terms[t].sign = negative ? -1 : 1;
            if (terms[t].first >= 0 && terms[t].first + reach < PyList_GET_SIZE(terms[t].column))
                continue;
            PyErr_SetString(PyExc_IndexError, "a term is beyond its column");
        }
        PyMem_Free(terms);
        return NULL;
    }
    return terms;
}

static PyObject *
combined(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    if (given != 5 || !are_lists(args, 2) || !PyTuple_CheckExact(args[4]))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "combined(starts, ends, cycle, count, terms)");
    Py_ssize_t cycle = PyLong_AsSsize_t(args[2]), count = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (cycle < 1 || count < 0 || count > PyList_GET_SIZE(args[0]))
        return PyErr_Format(PyExc_ValueError, "no such columns");
    if (count == 0)
        return PyList_New(0);
    Py_ssize_t several = PyTuple_GET_SIZE(args[4]);
    Term *terms = read_terms(args[4], args, (count - 1) * cycle);
    PyObject *out = terms == NULL ? NULL : PyList_New(count);
    for (Py_ssize_t n = 0; n < count && out != NULL; n++) {
        long long total = 0;
        for (Py_ssize_t t = 0; t < several; t++) {
            PyObject *instant = PyList_GET_ITEM(terms[t].column, terms[t].first + n * cycle);
            if (PyLong_CheckExact(instant))
                total += terms[t].sign * PyLong_AsLongLong(instant);
            else
                PyErr_SetString(PyExc_TypeError, "an instant is whole");
        }
        PyObject *entry = PyErr_Occurred() ? NULL : PyLong_FromLongLong(total);
        if (entry == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, n, entry);
    }
    PyMem_Free(terms);
    return out;
}

static PyObject *
in_seconds(PyObject *module, PyObject *values)
{
    if (!are_lists(&values, 1))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(values);
    PyObject *out = PyList_New(count);
    if (out == NULL)
        return NULL;
    for (Py_ssize_t n = 0; n < count; n++) {
        double number = number_of(PyList_GET_ITEM(values, n));
        PyObject *entry = PyErr_Occurred() ? NULL : PyFloat_FromDouble(number / 1e9);
        if (entry == NULL) {
            Py_DECREF(out);
            return NULL;
        }
        PyList_SET_ITEM(out, n, entry);
    }
    return out;
}

static PyObject *
spread(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    if (given != 2 || !are_lists(args, 1))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "spread(values, stride)");
    Py_ssize_t stride = PyLong_AsSsize_t(args[1]), count = PyList_GET_SIZE(args[0]);
    if (stride == -1 && PyErr_Occurred())
        return NULL;
    if (stride < 1)
        return PyErr_Format(PyExc_ValueError, "a bin holds at least one");
    Py_ssize_t bins = (count + stride - 1) / stride;
    PyObject *of[3] = {PyList_New(bins), PyList_New(bins), PyList_New(bins)}; /* means, least, largest */
    int failed = of[0] == NULL || of[1] == NULL || of[2] == NULL;
    for (Py_ssize_t bin = 0; bin < bins && !failed; bin++) {
        Py_ssize_t first = bin * stride, stop = first + stride < count ? first + stride : count;
        double total = 0.0, least = 0.0, largest = 0.0;
        for (Py_ssize_t n = first; n < stop; n++) {
            double number = number_of(PyList_GET_ITEM(args[0], n));
            total += number;
            if (n == first)
                least = largest = number;
            else if (number < least)
                least = number;
            else if (number > largest)
                largest = number;
        }
        failed = PyErr_Occurred() != NULL;
        double told[3] = {total / (double)(stop - first), least, largest};
        for (int i = 0; i < 3 && !failed; i++) {
            PyObject *entry = PyFloat_FromDouble(told[i]);
            failed = entry == NULL;
            if (entry != NULL)
                PyList_SET_ITEM(of[i], bin, entry);
        }
    }
    PyObject *out = failed ? NULL : PyTuple_Pack(3, of[0], of[1], of[2]);
    for (int i = 0; i < 3; i++)
        Py_XDECREF(of[i]);
    return out;
}

static PyMethodDef functions[] = {
    {"combined", (PyCFunction)(void (*)(void))combined, METH_FASTCALL, NULL},
    {"in_seconds", (PyCFunction)(void (*)(void))in_seconds, METH_O, NULL},
    {"spread", (PyCFunction)(void (*)(void))spread, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "otel_ml.pipeline._columns",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__columns(void)
{
    return PyModule_Create(&definition);
}
