// Points and hits as protobuf's bytes: see wire.py, which says what these functions promise, and tests/store/test_wire.py.
//
// Plain copying between Python's own objects, under the interpreter lock: ten hits take about as long as one call of a Python function.
// Nothing here calls back into Python while a pointer into an object is held, but for allocations of bytes and lists of them.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace nb = nanobind;

namespace {

using Versions = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

size_t varint_size(uint64_t value) {
  size_t size = 1;
  for (; value > 0x7F; value >>= 7) ++size;
  return size;
}

char* put_varint(char* to, uint64_t value) {
  for (; value > 0x7F; value >>= 7) *to++ = static_cast<char>((value & 0x7F) | 0x80);
  *to++ = static_cast<char>(value);
  return to;
}

char* put_field(char* to, char tag, const char* body, size_t size) {
  *to++ = tag;
  to = put_varint(to, size);
  std::memcpy(to, body, size);
  return to + size;
}

size_t field_size(size_t size) { return 1 + varint_size(size) + size; }

/// New bytes of this size, to be written by the caller before anything else runs.
nb::object new_bytes(size_t size) {
  PyObject* made = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
  if (made == nullptr) nb::raise_python_error();
  return nb::steal(made);
}

char* data_of(const nb::object& made) { return PyBytes_AS_STRING(made.ptr()); }

struct Text {
  const char* data;
  size_t size;
};

Text bytes_of(nb::handle object) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(object.ptr(), &data, &size) != 0) nb::raise_python_error();
  return {data, static_cast<size_t>(size)};
}

Py_ssize_t index_of(nb::handle object) {
  const Py_ssize_t value = PyNumber_AsSsize_t(object.ptr(), PyExc_IndexError);
  if (value == -1 && PyErr_Occurred()) nb::raise_python_error();
  return value;
}

/// Asks for the elements of rows, which lie all over the memory, before the first of them is looked at.
void prefetch(const nb::list& elements, const nb::list& rows) {
  constexpr size_t kBytes = 512;
  const auto each = [&](auto use) {
    for (nb::handle number : rows) {
      const Py_ssize_t row = index_of(number);
      if (row >= 0 && static_cast<size_t>(row) < nb::len(elements)) use(&PyList_GET_ITEM(elements.ptr(), row));
    }
  };
  each([](PyObject** element) { __builtin_prefetch(element); });
  each([](PyObject** element) {
    for (size_t byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(reinterpret_cast<const char*>(*element) + byte);
  });
}

/// Of each row a Point with fields 1 (id), 4 (payload_json, where there is one) and 7 (version, where it is not 0).
nb::list points(nb::list ids, Versions versions, nb::list payloads, nb::list rows) {
  nb::list found;
  prefetch(ids, rows);
  prefetch(payloads, rows);
  for (size_t i = 0; i < nb::len(rows); ++i) {
    const Py_ssize_t row = index_of(rows[i]);
    if (row < 0 || static_cast<size_t>(row) >= nb::len(ids) || static_cast<size_t>(row) >= versions.shape(0)) {
      throw nb::index_error("no such row");
    }
    const nb::object id = nb::borrow(PyList_GET_ITEM(ids.ptr(), row));
    const nb::object payload =
        static_cast<size_t>(row) < nb::len(payloads) ? nb::borrow(PyList_GET_ITEM(payloads.ptr(), row)) : nb::object();
    Py_ssize_t id_size;
    const char* id_data = PyUnicode_AsUTF8AndSize(id.ptr(), &id_size);
    if (id_data == nullptr) nb::raise_python_error();
    const Text json = payload.is_valid() ? bytes_of(payload) : Text{nullptr, 0};
    const uint64_t version = static_cast<uint64_t>(versions(static_cast<size_t>(row)));
    const size_t size = field_size(static_cast<size_t>(id_size)) + (json.size ? field_size(json.size) : 0) +
                        (version ? 1 + varint_size(version) : 0);
    nb::object made = new_bytes(size);
    char* to = put_field(data_of(made), 0x0A, id_data, static_cast<size_t>(id_size));
    if (json.size) to = put_field(to, 0x22, json.data, json.size);
    if (version) {
      *to++ = 0x38;
      put_varint(to, version);
    }
    found.append(std::move(made));
  }
  return found;
}

/// Of each point a Hit with fields 1 (point) and 2 (score, where its bits are not 0).
nb::list hits(nb::list points, nb::list scores) {
  if (nb::len(points) != nb::len(scores)) throw nb::value_error("as many scores as points are needed");
  nb::list found;
  for (size_t i = 0; i < nb::len(points); ++i) {
    const double wide = PyFloat_AsDouble(nb::object(scores[i]).ptr());
    if (wide == -1.0 && PyErr_Occurred()) nb::raise_python_error();
    const float score = static_cast<float>(wide);
    uint32_t bits;
    std::memcpy(&bits, &score, 4);
    const nb::object point = points[i];
    const Text body = bytes_of(point);
    nb::object made = new_bytes(field_size(body.size) + (bits ? 5 : 0));
    char* to = put_field(data_of(made), 0x0A, body.data, body.size);
    if (bits) {
      *to++ = 0x15;
      for (int shift = 0; shift < 32; shift += 8) *to++ = static_cast<char>(bits >> shift);
    }
    found.append(std::move(made));
  }
  return found;
}

/// A repeated field of messages, strings or bytes, one after the other.
nb::object repeated_field(unsigned number, nb::list bodies) {
  if (number < 1 || number > 15) throw nb::value_error("only fields 1 to 15 have a tag of one byte");
  std::vector<Text> texts;
  size_t size = 0;
  for (nb::handle body : bodies) {
    texts.push_back(bytes_of(body));
    size += field_size(texts.back().size);
  }
  nb::object made = new_bytes(size);
  char* to = data_of(made);
  for (const Text& text : texts) to = put_field(to, static_cast<char>(number << 3 | 2), text.data, text.size);
  return made;
}

/// The field `header`, number 1, with fields 1 (position, whose field 2 is the sequence) and 2 (time); what is 0 is left out.
nb::object header_field(uint64_t sequence, uint64_t server_time_unix_ms) {
  char position[16];
  char* end = position;
  if (sequence) {
    *end++ = 0x10;
    end = put_varint(end, sequence);
  }
  char header[32];
  char* to = put_field(header, 0x0A, position, static_cast<size_t>(end - position));
  if (server_time_unix_ms) {
    *to++ = 0x10;
    to = put_varint(to, server_time_unix_ms);
  }
  const size_t size = static_cast<size_t>(to - header);
  nb::object made = new_bytes(field_size(size));
  put_field(data_of(made), 0x0A, header, size);
  return made;
}

}  // namespace

NB_MODULE(_wire, module) {
  module.def("points", &points, nb::arg("ids"), nb::arg("versions"), nb::arg("payloads"), nb::arg("rows"));
  module.def("hits", &hits, nb::arg("points"), nb::arg("scores"));
  module.def("repeated_field", &repeated_field, nb::arg("number"), nb::arg("bodies"),
             nb::sig("def repeated_field(number: int, bodies: list) -> bytes"));
  module.def("header_field", &header_field, nb::arg("sequence"), nb::arg("server_time_unix_ms"),
             nb::sig("def header_field(sequence: int, server_time_unix_ms: int) -> bytes"));
}
