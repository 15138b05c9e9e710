/* Columns of numbers as OTLP and as JSON, as `packed.py` has it in Python: the program has the interpreter meanwhile. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OTLP_MOST = 13, JSON_MOST = 32 }; /* bytes of an entry */

typedef struct {
    enum { NOTHING, WHOLE, REAL } kind;
    union {
        int64_t whole;
        double real;
    };
} Value;

static locale_t plain; /* in which a decimal point is a point */

/* The values of a tuple or list, to be freed with PyMem_Free(); NULL, without an error, where one is of another kind. */
static Value *
read_values(PyObject *said, Py_ssize_t count)
{
    Value *values = PyMem_New(Value, count + 1);
    for (Py_ssize_t n = 0; n < count && values != NULL; n++) {
        PyObject *value = PySequence_Fast_GET_ITEM(said, n);
        int overflow = 0;
        if (value == Py_None)
            values[n].kind = NOTHING;
        else if (PyFloat_CheckExact(value)) {
            values[n].kind = REAL;
            values[n].real = PyFloat_AS_DOUBLE(value);
        }
        else if (PyLong_CheckExact(value)) {
            values[n].kind = WHOLE;
            values[n].whole = PyLong_AsLongLongAndOverflow(value, &overflow);
        }
        else
            overflow = 1;
        if (overflow) {
            PyMem_Free(values);
            return NULL;
        }
    }
    return values;
}

/* `repeated AnyValue values = 1`, of which `int_value` is 3 and `double_value` 4. */
static unsigned char *
as_otlp(unsigned char *to, const Value *value)
{
    unsigned char *length = to + 1;
    *to = 0x0A;
    to += 2;
    if (value->kind == REAL) {
        uint64_t bits;
        memcpy(&bits, &value->real, sizeof bits);
        *to++ = 0x21;
        for (int i = 0; i < 8; i++)
            *to++ = (unsigned char)(bits >> 8 * i);
    }
    else if (value->kind == WHOLE) {
        uint64_t rest = (uint64_t)value->whole;
        *to++ = 0x18;
        for (; rest > 0x7F; rest >>= 7)
            *to++ = (unsigned char)(rest | 0x80);
        *to++ = (unsigned char)rest;
    }
    *length = (unsigned char)(to - length - 1);
    return to;
}

/* A number of nine decimals at most, which is what seconds in nanoseconds are and most of what was rounded: its digits.
   NULL where it is another: a quotient is rounded correctly, so the digits mean `real` if this one is `real`. */
static char *
as_decimal(char *to, double real)
{
    if (!(fabs(real) < 9e6)) /* so that nine decimals more are less than 2**53 */
        return NULL;
    long long billionths = llround(real * 1e9);
    if ((double)billionths / 1e9 != real || (billionths == 0 && signbit(real)))
        return NULL;
    if (billionths < 0)
        *to++ = '-';
    unsigned long long digits = billionths < 0 ? -(unsigned long long)billionths : (unsigned long long)billionths;
    unsigned long before = digits / 1000000000, after = digits % 1000000000;
    char reversed[8];
    int count = 0;
    do
        reversed[count++] = (char)('0' + before % 10);
    while (before /= 10);
    while (count)
        *to++ = reversed[--count];
    *to++ = '.';
    for (int place = 8; place >= 0; place--, after /= 10)
        to[place] = (char)('0' + after % 10);
    for (count = 9; count > 1 && to[count - 1] == '0';)
        count--;
    return to + count;
}

static char *
as_json(char *to, const Value *value)
{
    if (value->kind == NOTHING)
        return to + sprintf(to, "null");
    if (value->kind == WHOLE)
        return to + sprintf(to, "%lld", (long long)value->whole);
    if (!isfinite(value->real))
        return to + sprintf(to, "%s", isnan(value->real) ? "NaN" : value->real < 0 ? "-Infinity" : "Infinity");
    char *end = as_decimal(to, value->real);
    if (end != NULL)
        return end;
    int length = 0;
    if ((float)value->real != value->real) /* such as a loss, which takes all digits */
        length = snprintf(to, JSON_MOST, "%.10g", value->real); /* enough for what was rounded */
    if (length == 0 || strtod(to, NULL) != value->real)
        length = snprintf(to, JSON_MOST, "%.17g", value->real);
    to += length;
    if (strspn(to - length, "-0123456789") == (size_t)length)
        to += sprintf(to, ".0");
    return to;
}

typedef struct {
    Value *values; /* NULL where one of them is of another kind */
    Py_ssize_t count;
    unsigned char *otlp, *otlp_end;
    char *json, *json_end;
} Column;

static void
forget(Column *column)
{
    free(column->json);
    free(column->otlp);
    PyMem_Free(column->values);
}

/* Without the interpreter. */
static void
encode(Column *column)
{
    column->otlp_end = column->otlp = malloc(column->count * OTLP_MOST + 1);
    column->json_end = column->json = malloc(column->count * JSON_MOST + 3);
    if (column->otlp == NULL || column->json == NULL)
        return;
    *column->json_end++ = '[';
    for (Py_ssize_t n = 0; n < column->count; n++) {
        column->otlp_end = as_otlp(column->otlp_end, &column->values[n]);
        if (n)
            *column->json_end++ = ',';
        column->json_end = as_json(column->json_end, &column->values[n]);
    }
    *column->json_end++ = ']';
}

static PyObject *
told(const Column *column)
{
    if (column->values == NULL)
        Py_RETURN_NONE;
    if (column->otlp == NULL || column->json == NULL)
        return PyErr_NoMemory();
    return Py_BuildValue("y#s#", (char *)column->otlp, column->otlp_end - column->otlp, column->json,
                         column->json_end - column->json);
}

static PyObject *
encoded(PyObject *module, PyObject *said)
{
    if (!PyList_CheckExact(said))
        return PyErr_Format(PyExc_TypeError, "columns come in a list");
    Py_ssize_t several = PyList_GET_SIZE(said);
    for (Py_ssize_t n = 0; n < several; n++) {
        PyObject *column = PyList_GET_ITEM(said, n);
        if (!PyTuple_CheckExact(column) && !PyList_CheckExact(column))
            return PyErr_Format(PyExc_TypeError, "a column is a tuple or a list");
    }
    Column *columns = PyMem_Calloc(several + 1, sizeof(Column));
    if (columns == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t n = 0; n < several; n++) {
        columns[n].count = PySequence_Fast_GET_SIZE(PyList_GET_ITEM(said, n));
        columns[n].values = read_values(PyList_GET_ITEM(said, n), columns[n].count);
    }
    Py_BEGIN_ALLOW_THREADS
    locale_t before = uselocale(plain);
    for (Py_ssize_t n = 0; n < several; n++)
        if (columns[n].values != NULL)
            encode(&columns[n]);
    uselocale(before);
    Py_END_ALLOW_THREADS
    PyObject *out = PyList_New(several);
    for (Py_ssize_t n = 0; n < several; n++) {
        PyObject *both = out == NULL ? NULL : told(&columns[n]);
        if (both != NULL)
            PyList_SET_ITEM(out, n, both);
        else
            Py_CLEAR(out);
        forget(&columns[n]);
    }
    PyMem_Free(columns);
    return out;
}

static PyMethodDef functions[] = {
    {"encoded", encoded, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "otel_ml.store._packed",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__packed(void)
{
    plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    return plain == (locale_t)0 ? PyErr_NoMemory() : PyModule_Create(&definition);
}
