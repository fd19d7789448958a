// The sampling engine in Python: takes fastgen.sampling.program.Program objects apart. Tensors come
// as addresses, so that no torch header is needed; fastgen/sampling/executors/cpu.py checks them.
#include "engine_bindings.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "engine/fingerprint.h"

namespace py = pybind11;
using namespace fastgen;
using namespace fastgen::engine;

namespace {

template <class T>
std::vector<T> values_of(const py::handle& array) {
  if (array.is_none()) return {};
  const auto dense = py::array_t < T, py::array::c_style | py::array::forcecast > ::ensure(array);
  if (!dense) throw py::error_already_set();
  return {dense.data(), dense.data() + dense.size()};
}

template <class Enum>
Enum named(const char* const* names, size_t count, const std::string& name, const char* what) {
  const auto found = std::find(names, names + count, name);
  if (found == names + count) {
    throw py::value_error(std::string("fastgen: the CPU engine has no ") + what + " '" + name +
                          "'");
  }
  return static_cast<Enum>(found - names);
}

#define FASTGEN_NAME(name) #name,
constexpr const char* kRowFunctions[] = {FASTGEN_ROW_FUNCTIONS(FASTGEN_NAME)};
constexpr const char* kPointwise[] = {FASTGEN_UNARY(FASTGEN_NAME) FASTGEN_BINARY(FASTGEN_NAME)
                                          FASTGEN_TERNARY(FASTGEN_NAME)};
#undef FASTGEN_NAME
constexpr const char* kKinds[] = {"linear", "map", "gather", "lookup",
                                  "row",    "dot", "mix",    "attention"};
constexpr const char* kEpilogues[] = {"none", "relu", "gate", "gate_both", "code"};
constexpr const char* kSources[] = {"acc", "op", "const", "tmp"};
constexpr const char* kLikelihoods[] = {"categorical", "bernoulli", "mixture"};

template <class Enum, size_t n>
Enum named(const char* const (&names)[n], const py::handle& name, const char* what) {
  return named<Enum>(names, n, name.cast<std::string>(), what);
}

CodeStep code_step(const py::handle& line) {
  const auto [function, result, arguments] =
      line.cast<std::tuple<py::object, py::tuple, py::sequence>>();
  CodeStep step = {};
  step.function = named<Pointwise>(kPointwise, function, "function");
  const int32_t which = result.size() > 1 ? result[1].cast<int32_t>() : 0;
  step.result = result[0].cast<std::string>() == "out" ? -1 - which : which;
  size_t n = 0;
  for (const py::handle& given : arguments) {
    const auto argument = given.cast<py::tuple>();
    if (n == 3) throw py::value_error("fastgen: a function of more than 3 arguments");
    step.arguments[n++] = {named<Argument::Source>(kSources, argument[0], "value"),
                           argument[1].cast<int32_t>(),
                           argument.size() > 2 ? argument[2].cast<int32_t>() : 0};
    Argument& last = step.arguments[n - 1];
    if (last.source == Argument::kAcc) last = {Argument::kAcc, 0, argument[1].cast<int32_t>()};
  }
  for (; n < 3; ++n) step.arguments[n] = step.arguments[0];
  return step;
}

double number(const py::dict& from, const char* name) {
  return from.contains(name) ? from[name].cast<double>() : 0.0;
}

std::vector<Column> columns_of(const py::handle& from) {
  std::vector<Column> columns;
  for (const py::handle& c : from) {
    columns.push_back({c.attr("width").cast<int64_t>(), c.attr("channel").cast<int32_t>(),
                       c.attr("count").cast<int32_t>(), c.attr("broadcast").cast<bool>()});
  }
  return columns;
}

InstructionSource instruction(const py::handle& from) {
  InstructionSource source;
  Instruction& i = source.plain;
  i.kind = named<Kind>(kKinds, from.attr("kind"), "instruction");
  const auto table = from.attr("table").cast<py::array>();
  i.table_step = table.shape(1);
  source.table = values_of<int32_t>(table);
  i.width = from.attr("width").cast<int64_t>();
  i.nch = from.attr("nch").cast<int32_t>();
  source.critical = from.attr("critical").cast<bool>();
  source.columns = columns_of(from.attr("columns"));
  source.sides = columns_of(from.attr("sides"));
  i.epilogue = named<Epilogue>(kEpilogues, from.attr("epilogue"), "epilogue");
  if (i.kind == Kind::kLinear) {
    const auto weight = from.attr("weight").cast<py::array>();
    i.taps = from.attr("taps").cast<int32_t>();
    i.adds = from.attr("adds").cast<int32_t>();
    i.reduction = weight.shape(0);
    i.nacc = static_cast<int32_t>(weight.shape(1));
    i.second_width = from.attr("second_width").cast<int64_t>();
    source.weight = values_of<double>(weight);
    source.bias = values_of<double>(from.attr("bias"));
    i.first_operand = i.taps + i.adds;
  }
  for (const py::handle& line : from.attr("code")) source.code.push_back(code_step(line));
  i.temporaries = from.attr("temporaries").cast<int32_t>();
  const py::object consts = from.attr("consts");
  if (!consts.is_none()) {
    const auto array = consts.cast<py::array>();
    i.const_step = array.ndim() == 2 ? array.shape(1) : 0;
    source.consts = values_of<double>(array);
  }
  source.pick = values_of<int32_t>(from.attr("pick"));
  const py::object lookup = from.attr("lookup");
  if (!lookup.is_none()) {
    i.lookup_rows = lookup.cast<py::array>().shape(0);
    source.lookup = values_of<double>(lookup);
  }
  if (i.kind == Kind::kRow) {
    const auto args = from.attr("args").cast<py::dict>();
    i.function = named<RowFunction>(kRowFunctions, from.attr("function"), "row function");
    i.epsilon = number(args, "eps");
    i.correction = number(args, "correction");
    if (args.contains("weight")) source.row_weight = values_of<double>(args["weight"]);
    if (args.contains("bias")) source.row_bias = values_of<double>(args["bias"]);
  }
  if (i.kind == Kind::kAttention) {
    i.scale = number(from.attr("args").cast<py::dict>(), "scale");
    const auto pairs = values_of<int32_t>(from.attr("pairs"));
    for (size_t p = 0; p + 1 < pairs.size(); p += 2)
      source.pairs.push_back({pairs[p], pairs[p + 1]});
  }
  return source;
}

ProgramSource program_of(const py::handle& from) {
  ProgramSource program;
  program.steps = from.attr("steps").cast<int64_t>();
  program.parameters = from.attr("parameters").cast<int64_t>();
  program.codes = from.attr("codes").cast<int64_t>();
  program.floats = from.attr("floats").cast<int64_t>();
  program.zero_width = from.attr("zero_width").cast<int64_t>();
  for (const py::handle& i : from.attr("instructions")) {
    program.instructions.push_back(instruction(i));
  }
  const auto queue = values_of<int32_t>(from.attr("background"));
  for (size_t e = 0; e + 3 < queue.size(); e += 4) {
    program.queue.push_back({{queue[e], queue[e + 1], queue[e + 2]}, queue[e + 3]});
  }
  if (!queue.empty()) program.needed = values_of<int32_t>(from.attr("needed"));
  const auto entries = values_of<int32_t>(from.attr("entries"));
  for (size_t e = 0; e + 2 < entries.size(); e += 3) {
    program.entries.push_back({entries[e], entries[e + 1], entries[e + 2]});
  }
  const py::object draws = from.attr("draws");
  program.step_start = values_of<int32_t>(draws.attr("step_start"));
  program.param = values_of<int32_t>(draws.attr("param"));
  program.cell = values_of<int32_t>(draws.attr("cell"));
  program.index = values_of<int32_t>(draws.attr("index"));
  program.codes_a_draw = draws.attr("index").cast<py::array>().shape(1);
  for (const py::handle& given : from.attr("constants")) {
    const auto [slots, width, values] = given.cast<std::tuple<py::array, int64_t, py::array>>();
    program.statics.push_back(
        {values_of<int32_t>(slots), width, values.shape(1), values_of<double>(values), -1, {}});
  }
  for (const py::handle& given : from.attr("conditions")) {
    const auto [source, slots, width, elements] =
        given.cast<std::tuple<int64_t, py::array, int64_t, py::array>>();
    program.statics.push_back({values_of<int32_t>(slots),
                               width,
                               elements.shape(1),
                               {},
                               source,
                               values_of<int64_t>(elements)});
  }
  return program;
}

Storage storage_of(const std::string& dtype) {
  if (dtype == "float32") return Storage::kFloat32;
  if (dtype == "float64") return Storage::kFloat64;
  if (dtype == "bfloat16") return Storage::kBFloat16;
  throw py::value_error("fastgen: the CPU engine has no dtype " + dtype);
}

Isa level_of(const std::string& name) {
  if (name.empty()) return active_isa();
  for (Isa level : {Isa::kDefault, Isa::kAvx2, Isa::kAvx512}) {
    if (name == isa_name(level) && isa_supported(level)) return level;
  }
  throw py::value_error("fastgen: this CPU has no level " + name);
}

using Conditions = std::vector<std::pair<uintptr_t, int64_t>>;  // address, elements an image

std::vector<Condition> conditions_of(const Conditions& given) {
  std::vector<Condition> conditions;
  for (const auto& [address, elements] : given) {
    conditions.push_back({reinterpret_cast<const void*>(address), elements});
  }
  return conditions;
}

// (kind, levels, components, temperature, top_k, top_p, address of the uniforms, uniforms a code)
using DrawTuple =
    std::tuple<std::string, int64_t, int64_t, double, int64_t, double, uintptr_t, int64_t>;

DrawRequest draw_of(const DrawTuple& given) {
  const auto& [kind, levels, components, temperature, top_k, top_p, uniforms, count] = given;
  const auto which = named<Likelihood::Kind>(kLikelihoods, py::str(kind), "likelihood");
  return {{which, levels, components, temperature, top_k, top_p},
          reinterpret_cast<const double*>(uniforms),
          count};
}

py::object run(const Engine& engine, int64_t n, uintptr_t codes, const Conditions& conditions,
               const std::optional<DrawTuple>& draw, uintptr_t known, uintptr_t params,
               int64_t group, int64_t threads, const py::object& tick) {
  DrawRequest draw_request;
  RunRequest request = {n,
                        group,
                        threads,
                        reinterpret_cast<int64_t*>(codes),
                        conditions_of(conditions),
                        nullptr,
                        reinterpret_cast<const bool*>(known),
                        reinterpret_cast<void*>(params)};
  if (draw) {
    draw_request = draw_of(*draw);
    request.draw = &draw_request;
  }
  NanFound nan;
  {
    py::gil_scoped_release released;
    nan = engine.run(request, [&](double done) {
      py::gil_scoped_acquire acquired;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!tick.is_none()) tick(done);
    });
  }
  if (nan.sample < 0) return py::none();
  return py::make_tuple(nan.sample, nan.draw);
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<Stepper>(m, "SamplerSteps")
      .def(
          "advance",
          [](Stepper& stepper, int64_t step, uintptr_t params) {
            py::gil_scoped_release released;
            stepper.advance(step, reinterpret_cast<void*>(params));
          },
          py::arg("step"), py::arg("params"))
      .def(
          "put",
          [](Stepper& stepper, int64_t step, uintptr_t codes) {
            stepper.put(step, reinterpret_cast<const int64_t*>(codes));
          },
          py::arg("step"), py::arg("codes"));
  py::class_<Engine>(m, "SamplerEngine")
      .def(
          py::init([](const py::object& program, const std::string& dtype, const std::string& isa) {
            return make_engine(program_of(program), storage_of(dtype), level_of(isa));
          }),
          py::arg("program"), py::arg("dtype"), py::arg("isa") = "")
      .def("run", &run, py::arg("n"), py::arg("codes"), py::arg("conditions"), py::arg("draw"),
           py::arg("known"), py::arg("params"), py::arg("group"), py::arg("threads"),
           py::arg("tick"))
      .def(
          "stepper",
          [](const Engine& engine, int64_t n, const Conditions& conditions) {
            return engine.stepper(n, conditions_of(conditions));
          },
          py::arg("n"), py::arg("conditions"), py::keep_alive<0, 1>())
      .def_property_readonly("weight_bytes", &Engine::weight_bytes)
      .def_property_readonly("table_bytes", &Engine::table_bytes);
  m.def(
      "fingerprint",
      [](uintptr_t address, int64_t bytes, uint64_t seed) {
        py::gil_scoped_release released;
        return fingerprint(reinterpret_cast<const void*>(address), bytes, seed);
      },
      py::arg("address"), py::arg("bytes"), py::arg("seed") = 0, "64-bit hash of memory's content");
  m.def(
      "fingerprint",
      [](const std::vector<std::pair<uintptr_t, int64_t>>& parts, uint64_t seed) {
        py::gil_scoped_release released;
        for (const auto& [address, bytes] : parts) {
          seed = fingerprint(reinterpret_cast<const void*>(address), bytes, seed);
        }
        return seed;
      },
      py::arg("parts"), py::arg("seed") = 0, "of several (address, bytes), in order");
}
