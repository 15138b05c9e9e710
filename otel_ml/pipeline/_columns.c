/* Arithmetic on columns, as `columns.py` has it in Python. A column is an `array` of "q" or "d". */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>

static PyObject *one_whole, *one_double; /* arrays of one zero, from which others are made */

/* A column's memory, to be given back with PyBuffer_Release(); -1 with an error if it is not one of this kind. */
static int
look(PyObject *column, char kind, Py_buffer *view)
{
    if (PyObject_GetBuffer(column, view, PyBUF_FORMAT | PyBUF_ND) < 0)
        return -1;
    if (view->ndim == 1 && view->itemsize == 8 && view->format != NULL && view->format[0] == kind && !view->format[1])
        return 0;
    PyBuffer_Release(view);
    PyErr_Format(PyExc_TypeError, "a column is an array of '%c'", kind);
    return -1;
}

static Py_ssize_t
length(const Py_buffer *view)
{
    return view->len / 8;
}

/* A new column, and its memory. */
static PyObject *
make(char kind, Py_ssize_t count, Py_buffer *view)
{
    PyObject *column = PySequence_Repeat(kind == 'q' ? one_whole : one_double, count);
    if (column != NULL && look(column, kind, view) < 0)
        Py_CLEAR(column);
    return column;
}

static PyObject *
made(PyObject *column, Py_buffer *view)
{
    PyBuffer_Release(view);
    return column;
}

typedef struct {
    const long long *instants;
    int sign;
} Term;

/* The terms that a tuple says, each checked to stay within its column; NULL with an error. */
static Term *
read_terms(PyObject *said, const Py_buffer *columns, Py_ssize_t reach)
{
    Py_ssize_t several = PyTuple_GET_SIZE(said);
    Term *terms = PyMem_New(Term, several + 1);
    if (terms == NULL)
        return (Term *)PyErr_NoMemory();
    for (Py_ssize_t t = 0; t < several; t++) {
        int of_ends, negative;
        Py_ssize_t first;
        PyObject *term = PyTuple_GET_ITEM(said, t);
        if (!PyTuple_CheckExact(term))
            PyErr_SetString(PyExc_TypeError, "a term is a tuple");
        else if (PyArg_ParseTuple(term, "npp", &first, &of_ends, &negative)) {
            const Py_buffer *column = &columns[of_ends ? 1 : 0];
            if (first >= 0 && first < length(column) - reach) {
                terms[t].instants = (const long long *)column->buf + first;
                terms[t].sign = negative ? -1 : 1;
                continue;
            }
            PyErr_SetString(PyExc_IndexError, "a term is beyond its column");
        }
        PyMem_Free(terms);
        return NULL;
    }
    return terms;
}

static PyObject *
combine(const Py_buffer *columns, Py_ssize_t cycle, Py_ssize_t count, PyObject *said)
{
    if (cycle < 1 || count < 0 || count > length(&columns[0]))
        return PyErr_Format(PyExc_ValueError, "no such columns");
    Term *terms = read_terms(said, columns, count ? (count - 1) * cycle : 0);
    Py_buffer view;
    PyObject *out = terms == NULL ? NULL : make('q', count, &view);
    if (out != NULL) {
        long long *totals = view.buf;
        for (Py_ssize_t t = 0; t < PyTuple_GET_SIZE(said); t++)
            for (Py_ssize_t n = 0; n < count; n++)
                totals[n] += terms[t].sign * terms[t].instants[n * cycle];
        made(out, &view);
    }
    PyMem_Free(terms);
    return out;
}

static PyObject *
combined(PyObject *module, PyObject *args)
{
    PyObject *starts, *ends, *said;
    Py_ssize_t cycle, count;
    if (!PyArg_ParseTuple(args, "OOnnO!", &starts, &ends, &cycle, &count, &PyTuple_Type, &said))
        return NULL;
    Py_buffer columns[2];
    if (look(starts, 'q', &columns[0]) < 0)
        return NULL;
    PyObject *out = NULL;
    if (look(ends, 'q', &columns[1]) == 0) {
        out = combine(columns, cycle, count, said);
        PyBuffer_Release(&columns[1]);
    }
    PyBuffer_Release(&columns[0]);
    return out;
}

static PyObject *
follow(PyObject *module, PyObject *args)
{
    PyObject *of_ends, *of_starts;
    long long gap;
    if (!PyArg_ParseTuple(args, "OOL", &of_ends, &of_starts, &gap))
        return NULL;
    Py_buffer ends, starts;
    if (look(of_ends, 'q', &ends) < 0)
        return NULL;
    if (look(of_starts, 'q', &starts) < 0) {
        PyBuffer_Release(&ends);
        return NULL;
    }
    Py_ssize_t count = length(&starts) - 1 < length(&ends) ? length(&starts) - 1 : length(&ends);
    const long long *end = ends.buf, *start = starts.buf;
    Py_ssize_t n = 0;
    while (n < count && start[n + 1] - end[n] >= gap)
        n++;
    PyBuffer_Release(&starts);
    PyBuffer_Release(&ends);
    return PyBool_FromLong(n >= count);
}

static PyObject *
added(PyObject *module, PyObject *column)
{
    Py_buffer given;
    if (look(column, 'q', &given) < 0)
        return NULL;
    const long long *values = given.buf;
    Py_ssize_t count = length(&given);
    long long total = 0, largest = count ? values[0] : 0;
    for (Py_ssize_t n = 0; n < count; n++) {
        total += values[n];
        if (values[n] > largest)
            largest = values[n];
    }
    PyBuffer_Release(&given);
    return count ? Py_BuildValue("LL", total, largest) : PyErr_Format(PyExc_ValueError, "there is no value");
}

static PyObject *
in_seconds(PyObject *module, PyObject *column)
{
    Py_buffer given, view;
    if (look(column, 'q', &given) < 0)
        return NULL;
    PyObject *out = make('d', length(&given), &view);
    if (out != NULL) {
        for (Py_ssize_t n = 0; n < length(&given); n++)
            ((double *)view.buf)[n] = (double)((const long long *)given.buf)[n] / 1e9;
        made(out, &view);
    }
    PyBuffer_Release(&given);
    return out;
}

static PyObject *
floats(PyObject *module, PyObject *values)
{
    if (!PyList_CheckExact(values))
        return PyErr_Format(PyExc_TypeError, "values come in a list");
    Py_ssize_t count = PyList_GET_SIZE(values);
    for (Py_ssize_t n = 0; n < count; n++)
        if (!PyFloat_CheckExact(PyList_GET_ITEM(values, n)))
            Py_RETURN_NONE;
    if (!count)
        Py_RETURN_NONE;
    Py_buffer view;
    PyObject *out = make('d', count, &view);
    if (out == NULL)
        return NULL;
    if (PyList_GET_SIZE(values) != count) {
        Py_DECREF(made(out, &view));
        return PyErr_Format(PyExc_RuntimeError, "the list has changed");
    }
    for (Py_ssize_t n = 0; n < count; n++)
        ((double *)view.buf)[n] = PyFloat_AS_DOUBLE(PyList_GET_ITEM(values, n));
    return made(out, &view);
}

static PyObject *
extremes(PyObject *module, PyObject *column)
{
    Py_buffer given;
    if (look(column, 'd', &given) < 0)
        return NULL;
    const double *values = given.buf;
    Py_ssize_t bad = 0;
    double least = INFINITY, largest = -INFINITY;
    for (Py_ssize_t n = 0; n < length(&given); n++) {
        if (!isfinite(values[n])) {
            bad++;
            continue;
        }
        if (values[n] < least)
            least = values[n];
        if (values[n] > largest)
            largest = values[n];
    }
    PyBuffer_Release(&given);
    return Py_BuildValue("ddn", least, largest, bad);
}

static PyObject *
spread(PyObject *module, PyObject *args)
{
    PyObject *column;
    Py_ssize_t stride;
    if (!PyArg_ParseTuple(args, "On", &column, &stride))
        return NULL;
    if (stride < 1)
        return PyErr_Format(PyExc_ValueError, "a bin holds at least one");
    Py_buffer given, views[3];
    if (look(column, 'd', &given) < 0)
        return NULL;
    const double *values = given.buf;
    Py_ssize_t count = length(&given), bins = count / stride + (count % stride != 0);
    PyObject *of[3] = {NULL, NULL, NULL}; /* means, least, largest */
    int several = 0;
    while (several < 3 && (of[several] = make('d', bins, &views[several])) != NULL)
        several++;
    for (Py_ssize_t bin = 0; bin < bins && several == 3; bin++) {
        Py_ssize_t first = bin * stride, stop = count - first < stride ? count : first + stride;
        double total = 0.0, least = values[first], largest = values[first];
        for (Py_ssize_t n = first; n < stop; n++) {
            total += values[n];
            if (values[n] < least)
                least = values[n];
            if (values[n] > largest)
                largest = values[n];
        }
        double told[3] = {total / (double)(stop - first), least, largest};
        for (int i = 0; i < 3; i++)
            ((double *)views[i].buf)[bin] = told[i];
    }
    for (int i = 0; i < several; i++)
        PyBuffer_Release(&views[i]);
    PyBuffer_Release(&given);
    PyObject *out = several == 3 ? PyTuple_Pack(3, of[0], of[1], of[2]) : NULL;
    for (int i = 0; i < 3; i++)
        Py_XDECREF(of[i]);
    return out;
}

static PyObject *
rounded(PyObject *module, PyObject *column)
{
    Py_buffer given;
    if (look(column, 'd', &given) < 0)
        return NULL;
    PyObject *out = PyList_New(length(&given));
    for (Py_ssize_t n = 0; n < length(&given) && out != NULL; n++) {
        char *text = PyOS_double_to_string(((const double *)given.buf)[n], 'g', 6, 0, NULL);
        double value = text == NULL ? -1.0 : PyOS_string_to_double(text, NULL, NULL);
        PyObject *entry = PyErr_Occurred() ? NULL : PyFloat_FromDouble(value);
        PyMem_Free(text);
        if (entry == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, n, entry);
    }
    PyBuffer_Release(&given);
    if (out == NULL && !PyErr_Occurred())
        PyErr_NoMemory();
    return out;
}

/* A tuple's floats, to be freed with PyMem_Free(); NULL with an error. */
static double *
read_bounds(PyObject *said)
{
    Py_ssize_t several = PyTuple_GET_SIZE(said);
    double *bounds = PyMem_New(double, several + 1);
    if (bounds == NULL)
        return (double *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < several; i++) {
        bounds[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(said, i));
        if (PyErr_Occurred()) {
            PyMem_Free(bounds);
            return NULL;
        }
    }
    return bounds;
}

static PyObject *
tally(PyObject *module, PyObject *args)
{
    PyObject *column, *said;
    double total;
    if (!PyArg_ParseTuple(args, "OO!d", &column, &PyTuple_Type, &said, &total))
        return NULL;
    Py_buffer given;
    if (look(column, 'd', &given) < 0)
        return NULL;
    const double *values = given.buf;
    Py_ssize_t several = PyTuple_GET_SIZE(said);
    double *bounds = NULL;
    Py_ssize_t *counts = NULL;
    PyObject *list = NULL, *out = NULL;
    if (length(&given) == 0)
        PyErr_SetString(PyExc_ValueError, "there is no value");
    else if ((bounds = read_bounds(said)) != NULL)
        counts = PyMem_Calloc(several + 1, sizeof(Py_ssize_t));
    if (counts != NULL && (list = PyList_New(several + 1)) != NULL) {
        double least = values[0], largest = values[0];
        for (Py_ssize_t n = 0; n < length(&given); n++) {
            double value = values[n];
            total += value;
            if (value < least)
                least = value;
            if (value > largest)
                largest = value;
            Py_ssize_t low = 0, high = several;
            while (low < high) {
                Py_ssize_t middle = (low + high) / 2;
                if (bounds[middle] < value)
                    low = middle + 1;
                else
                    high = middle;
            }
            counts[low]++;
        }
        int failed = 0;
        for (Py_ssize_t i = 0; i <= several; i++) {
            PyObject *entry = PyLong_FromSsize_t(counts[i]);
            failed |= entry == NULL;
            PyList_SET_ITEM(list, i, entry);
        }
        out = failed ? NULL : Py_BuildValue("Oddd", list, total, least, largest);
    }
    else if (!PyErr_Occurred())
        PyErr_NoMemory();
    Py_XDECREF(list);
    PyMem_Free(counts);
    PyMem_Free(bounds);
    PyBuffer_Release(&given);
    return out;
}

static PyMethodDef functions[] = {
    {"combined", combined, METH_VARARGS, NULL},
    {"follow", follow, METH_VARARGS, NULL},
    {"added", added, METH_O, NULL},
    {"in_seconds", in_seconds, METH_O, NULL},
    {"floats", floats, METH_O, NULL},
    {"extremes", extremes, METH_O, NULL},
    {"spread", spread, METH_VARARGS, NULL},
    {"rounded", rounded, METH_O, NULL},
    {"tally", tally, METH_VARARGS, NULL},
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
    PyObject *arrays = PyImport_ImportModule("array");
    if (arrays == NULL)
        return NULL;
    one_whole = PyObject_CallMethod(arrays, "array", "s(i)", "q", 0);
    one_double = PyObject_CallMethod(arrays, "array", "s(d)", "d", 0.0);
    Py_DECREF(arrays);
    return one_whole == NULL || one_double == NULL ? NULL : PyModule_Create(&definition);
}
