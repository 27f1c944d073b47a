"""Every instance of the CUDA table is compiled for every architecture; and what must be found, is found."""

import dataclasses
import re
import subprocess
import sys
from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from cuconv.cuda import algorithms, jit
from cuconv.cuda.kernel import PARAMS, Kernel
from cuconv.cuda.schedule import C_TYPES, sum_dtype
from cuconv.dtypes import DTYPES

from . import compiler
from .compiler import LIMITS, CompileError, build, capabilities, occupancy, report, report_kernel
from .cost import code
from .emulator.build import COMPILER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVRTC's wheel is taken from Linux's folders")

CHUNK = 12
"""Instances per test: many enough to name a file, few enough for two workers to finish together."""


AT_ONCE, SHARE = ((90, ""),), 6
"""Of which capabilities and twins every run of the tests compiles one of so many instances. The others take
minutes more.
"""


def twin(kernel):
    """A dtype of which a kernel has as many registers as of another: those of bfloat16 are float16's."""
    return "-bfloat16" if "bfloat16" in kernel.name.lower() else ""


def chunks():
    """A compute capability and instances of one file, for each test."""
    groups = {}
    for kernel in algorithms.kernels():
        for capability in capabilities(kernel):
            groups.setdefault((kernel.file, capability, twin(kernel)), []).append(kernel)
    for (file, capability, of), kernels in groups.items():
        first = kernels[::SHARE] if (capability, of) in AT_ONCE else []
        rest = [kernel for kernel in kernels if kernel not in first]
        for some, kind, marks in ((first, "first", ()), (rest, "rest", pytest.mark.architectures)):
            for start in range(0, len(some), CHUNK):
                name = f"{file}{of}-{capability}-{kind}-{start}"
                yield pytest.param(capability, some[start : start + CHUNK], id=name, marks=marks)


@pytest.mark.parametrize(("capability", "kernels"), list(chunks()))
def test_instances(capability, kernels):
    found = {kernel.name: report_kernel(kernel, capability).problems for kernel in kernels}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_names_are_unique():
    names = [kernel.name for kernel in algorithms.kernels()]
    assert len(set(names)) == len(names) > 0


def test_this_nvrtc_knows_the_architectures():
    assert set(LIMITS) <= set(compiler.known())
    assert min(LIMITS) == jit.LOWEST


def planted(body, threads=256):
    return (
        f'extern "C" __global__ void __launch_bounds__({threads}) planted(float* x, int i) {{\n  {body}\n}}\n'
    )


STACK = "float a[64]; for (int j = 0; j < i; ++j) a[j & 63] = x[j]; x[0] = a[i];"
SPILLS = """float a[128];
  #pragma unroll
  for (int j = 0; j < 128; ++j) a[j] = x[j * threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int j = 0; j < 128; ++j) x[j * j + threadIdx.x] = a[j] * a[j * 7 % 128];"""


@pytest.mark.parametrize("capability", LIMITS)
def test_a_good_kernel_has_no_problems(capability):
    # tanhf takes approximate instructions that flush subnormals, and is right all the same.
    body = "__shared__ float tile[64]; tile[i] = x[1] * x[2] + x[3] / x[4]; x[0] = tanhf(tile[threadIdx.x]);"
    made = report(planted(body), capability, 256)
    assert made.problems == []
    assert 8 <= made.registers <= 64
    assert made.shared == 256
    assert made.blocks >= 4


@pytest.mark.parametrize("capability", LIMITS)
@pytest.mark.parametrize(
    ("body", "threads", "options", "problem"),
    [
        (STACK, 256, (), "256 bytes of stack frame"),
        (SPILLS, 1024, (), "bytes of spills"),
        ("int unused;", 256, (), "warning #177-D"),
        ("x[0] = x[1] * x[2] + x[3];", 256, ("--ftz=true",), "fma.rn.ftz.f32 loses subnormals"),
        ("x[0] = x[1] / x[2];", 256, ("--prec-div=false",), "div.full.f32 is inexact"),
        ("x[0] = sqrtf(x[1]);", 256, ("--prec-sqrt=false",), "sqrt.approx.f32 is inexact"),
        (SPILLS, 256, (), "not one block fits"),
    ],
)
def test_a_bad_kernel_is_found(body, threads, options, problem, capability):
    source = planted(body, threads)
    # The last case is launched with more threads than it was compiled for.
    made = report(source, capability, 1024 if problem.startswith("not one") else threads, *options)
    assert any(problem in found for found in made.problems), made.problems


def test_a_serialised_wgmma_is_found():
    made = report(planted(""), 90, 256)
    line = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    assert made.problems == []
    assert dataclasses.replace(made, log=f"{made.log}{line}\n").problems == [line]


def test_registers_that_warpgroups_share_out_are_there_at_launch():
    """Otherwise the ones that want more would wait forever."""
    made = report(planted(""), 90, 384)
    assert made.problems == []
    sharing = dataclasses.replace(made, ptx=f"{made.ptx}\nsetmaxnreg.inc.sync.aligned.u32 200;")
    assert sharing.problems == [f"{made.registers} registers at launch, and setmaxnreg counts on 168"]
    assert dataclasses.replace(sharing, registers=168).problems == []


def test_the_last_option_counts():
    """Why cuda/jit.py does not compile by CuPy's RawModule: -ftz=true comes after the caller's options."""
    source = planted("x[0] = x[1] + x[2];")
    assert "add.f32" in report(source, 80, 256).ptx
    assert "add.ftz.f32" in report(source, 80, 256, "-ftz=true").ptx


def test_a_syntax_error_shows_the_log():
    with pytest.raises(CompileError, match=r'test\.cu\(2\): error: identifier "nonsense" is undefined'):
        report(planted("nonsense();"), 80, 256)


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "blocks"),
    [
        (75, 256, 64, 33000, 1),
        (80, 256, 40, 65536, 2),
        (80, 256, 128, 16896, 2),
        (86, 128, 168, 0, 3),
        (89, 96, 40, 0, 16),
        (90, 384, 168, 0, 1),
        (90, 1024, 80, 0, 0),
        (100, 32, 16, 0, 32),
        (120, 256, 255, 0, 1),
    ],
)
def test_occupancy(capability, threads, registers, shared, blocks):
    """What NVIDIA's cuda_occupancy.h answers."""
    assert occupancy(capability, threads, registers, shared) == blocks


def layout(dtype, path="", start=0):
    """Assertions that the struct Params has every field of a dtype where the dtype has it.

    NVRTC has no offsetof; __INTADDR__ is what its front end makes one of.
    """
    if dtype.subdtype:
        item, (count,) = dtype.subdtype
        for index in range(count):
            yield from layout(item, f"{path}[{index}]", start + index * item.itemsize)
    elif dtype.fields:
        for name, (field, offset, *_) in dtype.fields.items():
            yield from layout(field, f"{path}.{name}".lstrip("."), start + offset)
    else:
        member = f"static_cast<Params*>(nullptr)->{path}"
        yield f"static_assert(__INTADDR__(&{member}) == {start} && sizeof({member}) == {dtype.itemsize});\n"


def compile_layout(dtype):
    lines = [*layout(dtype), f"static_assert(sizeof(Params) == {dtype.itemsize});\n"]
    build('#include "params.cuh"\n' + "".join(lines), jit.options("sm_80"))


def test_params_are_where_the_compiler_has_them():
    compile_layout(PARAMS)


def test_a_wrong_layout_is_found():
    moved = PARAMS.descr
    moved[0], moved[1] = moved[1], moved[0]
    narrow = [
        (name, np.int32 if name == PARAMS.names[-1] else kind, *shape) for name, kind, *shape in PARAMS.descr
    ]
    for wrong in (moved, [*PARAMS.descr, ("more", np.int64)], narrow):
        with pytest.raises(CompileError, match="static assertion failed"):
            compile_layout(np.dtype(wrong))


def test_types_are_those_of_the_dtypes():
    """The size of an element, the type of sums and that of sums in double precision."""
    lines = ["template <typename A, typename B> constexpr bool same = false;"]
    lines += ["template <typename A> constexpr bool same<A, A> = true;"]
    for name, dtype in DTYPES.items():
        t, accumulator = C_TYPES[name], C_TYPES[dtype.accumulator]
        assert np.dtype(getattr(ml_dtypes, name, None) or name).itemsize == dtype.itemsize
        lines.append(f"static_assert(sizeof({t}) == {dtype.itemsize});")
        lines.append(f"static_assert(same<Accumulator<{t}>, {accumulator}>);")
        lines.append(f"static_assert(same<Double<{t}>, {C_TYPES[sum_dtype('bgrad', name)]}>);")
    build('#include "numerics.cuh"\n' + "\n".join(lines), jit.options("sm_80"))


def wrappers(header, capability=None):
    """What every wrapper of cuda_src/ptx hands to the assembler, operands in their places, by its signature.

    "+" marks those that an instruction updates, "also" those that it does not name, "memory" one that stays
    and is kept in order with other accesses. Of `capability`, or of all of them one after the other.
    """
    found = {}
    parts = re.split(r"(?:template <([^<>]*)>\s+)?__device__ inline ", expanded(header, capability))
    for template, function in zip(parts[1::2], parts[2::2], strict=True):
        name, parameters, body = re.fullmatch(r".*?(\w+)\((.*?)\) {(.*)", function, re.DOTALL).groups()
        signature = f"{name}<{names(template)}>" if template else name
        statements = re.findall(r"\basm\b.*?\);", body, re.DOTALL)
        found[f"{signature}({names(parameters)})"] = [as_assembled(text) for text in statements]
    return found


def expanded(header, capability):
    """A header without comments, its macros and conditions expanded, but nothing included."""
    text = (jit.SOURCES / f"ptx/{header}.cuh").read_text()
    text = re.sub(r"^#(?:include|pragma).*" if capability else r"^#(?!define).*", "", text, flags=re.M)
    command = [*COMPILER, "-E", "-P", "-x", "c++", "-", f"-D__CUDA_ARCH__={10 * (capability or 0)}"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def names(parameters):
    """Of parameters the names and the extents, without types and defaults."""
    each = [re.sub(r" = .*", "", parameter) for parameter in re.split(r",\s*", parameters) if parameter]
    return ", ".join(re.search(r"(\w+)\)?((?:\[\w+\])*)$", parameter).expand(r"\1\2") for parameter in each)


def as_assembled(statement):
    instruction, operands = re.fullmatch(r'[^"]*((?:"[^"]*"\s*)+)(.*)', statement, re.DOTALL).groups()
    instruction = re.sub(r'"\s*"', "", instruction).strip().strip('"')
    found = re.findall(r'"([=+]?)[a-z]"\(((?:[^()]|\([^()]*\))*)\)', operands)
    named = [update.strip("=") + added(expression) for update, expression in found]
    used = {int(place) for place in re.findall(r"%(\d+)", instruction)}
    unused = "".join(f" also {name}" for place, name in enumerate(named) if place not in used)
    ordered = " memory" if statement.startswith("asm volatile(") and '"memory"' in operands else ""
    return re.sub(r"%(\d+)", lambda place: named[int(place[1])], instruction) + unused + ordered


def added(expression):
    """An expression, numbers in brackets added up."""
    return re.sub(r"\[(\d+) \+ (\d+)\]", lambda found: f"[{int(found[1]) + int(found[2])}]", expression)


A4, B2, D4 = "{a[0], a[1], a[2], a[3]}", "{b[0], b[1]}", "{+d[0], +d[1], +d[2], +d[3]}"
GUARD = "{.reg .pred p; setp.ne.s32 p, int(wanted), 0; @p"
ROW = "[shared_address(row)]; memory"
BARRIER = "[shared_address(barrier)]"


def warpgroup_products():
    """Of all widths and types: A is in shared memory or, a[4], in registers; of 16 bits, MN-major may be."""
    for columns in (64, 128, 256):
        d = ", ".join(f"+d[{j}][{e}]" for j in range(columns // 8) for e in range(4))
        for kind, k, majors in (("f16", 16, "AB"), ("bf16", 16, "AB"), ("tf32", 8, "")):
            for a, words, free in (("a", "a", majors), ("a[4]", A4, majors[1:])):
                template = f"<{', '.join(f'{name}_K_MAJOR' for name in free)}>" if free else ""
                transposed = "".join(f", int(!{name}_K_MAJOR)" for name in free)
                yield (
                    f"wgmma_k{k}_{kind}{template}(d[{columns // 8}][4], {a}, b, add)",
                    "{.reg .pred p; setp.ne.b32 p, int(add), 0; "
                    f"wgmma.mma_async.sync.aligned.m64n{columns}k{k}.f32.{kind}.{kind} "
                    f"{{{d}}}, {words}, b, p, 1, 1{transposed};}} memory",
                )


PTX = {
    "base": {
        "half_to_float(bits)": ["cvt.f32.f16 value, bits;"],
        "float_to_half(value)": ["cvt.rn.f16.f32 bits, value;"],
        "load_if<V>(global, wanted)": [
            f"{GUARD} ld.global.nc.v4.b32 {{+words[0], +words[1], +words[2], +words[3]}}, [global];}}",
            f"{GUARD} ld.global.nc.v2.b32 {{+words[0], +words[1]}}, [global];}}",
            *(f"{GUARD} ld.global.nc.{kind} +words[0], [global];}}" for kind in ("b32", "u16", "u8")),
        ],
    },
    "sm80": {
        "shared_address(shared)": [],
        "cp_async<bytes>(shared, global, source_bytes)": [
            "cp.async.cg.shared.global [shared_address(shared)], [global], 16, source_bytes; memory",
            "cp.async.ca.shared.global [shared_address(shared)], [global], bytes, source_bytes; memory",
        ],
        "cp_async_commit()": ["cp.async.commit_group; memory"],
        "cp_async_wait<groups_left>()": ["cp.async.wait_group groups_left; memory"],
        "cp_async_wait_all()": ["cp.async.wait_all; memory"],
        "ldmatrix(d[1], row)": [f"ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{d[0]}}, {ROW}"],
        "ldmatrix(d[2], row)": [f"ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{d[0], d[1]}}, {ROW}"],
        "ldmatrix(d[4], row)": [
            f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{d[0], d[1], d[2], d[3]}}, {ROW}"
        ],
        "ldmatrix_trans(d[1], row)": [f"ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{d[0]}}, {ROW}"],
        "ldmatrix_trans(d[2], row)": [
            f"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {{d[0], d[1]}}, {ROW}"
        ],
        "ldmatrix_trans(d[4], row)": [
            f"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{d[0], d[1], d[2], d[3]}}, {ROW}"
        ],
        "mma_m16n8k16_f16(d[4], a[4], b[2])": [
            f"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {D4}, {A4}, {B2}, {D4};"
        ],
        "mma_m16n8k16_bf16(d[4], a[4], b[2])": [
            f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {D4}, {A4}, {B2}, {D4};"
        ],
        "mma_m16n8k8_tf32(d[4], a[4], b[2])": [
            f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {D4}, {A4}, {B2}, {D4};"
        ],
        "float_to_tf32(value)": ["cvt.rna.tf32.f32 bits, value;"],
        "floats_to_bf16x2(low, high)": ["cvt.rn.bf16x2.f32 bits, high, low;"],
        "mma_m8n8k4_f64(d[2], a, b)": [
            "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {+d[0], +d[1]}, {a}, {b}, {+d[0], +d[1]};"
        ],
        "mma_m16n8k16_f64(d[4], a[8], b[4])": [
            f"mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {D4}, "
            f"{{a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]}}, {{b[0], b[1], b[2], b[3]}}, {D4};",
            "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {+d[i % 2 * 2], +d[i % 2 * 2 + 1]}, {a[i]}, "
            "{b[i / 2]}, {+d[i % 2 * 2], +d[i % 2 * 2 + 1]};",
        ],
        "barrier_sync(id, threads)": ["bar.sync id, threads; memory"],
        "barrier_arrive(id, threads)": ["bar.arrive id, threads; memory"],
    },
    "sm90": {
        "mbarrier_init(barrier, arrivals)": [f"mbarrier.init.shared::cta.b64 {BARRIER}, arrivals; memory"],
        "mbarrier_arrive(barrier)": [f"mbarrier.arrive.shared::cta.b64 _, {BARRIER}; memory"],
        "mbarrier_try_wait(barrier, parity)": [
            f"{{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, {BARRIER}, parity; "
            "selp.s32 done, 1, 0, p;} memory"
        ],
        "cp_async_mbarrier_arrive_noinc(barrier)": [
            f"cp.async.mbarrier.arrive.noinc.shared::cta.b64 {BARRIER}; memory"
        ],
        "setmaxnreg_inc<count>()": ["setmaxnreg.inc.sync.aligned.u32 count;"],
        "setmaxnreg_dec<count>()": ["setmaxnreg.dec.sync.aligned.u32 count;"],
        "fence_proxy_async()": ["fence.proxy.async.shared::cta; memory"],
        "wgmma_fence()": ["wgmma.fence.sync.aligned; memory"],
        "wgmma_commit()": ["wgmma.commit_group.sync.aligned; memory"],
        "wgmma_wait<groups_left>()": ["wgmma.wait_group.sync.aligned groups_left; memory"],
        "wgmma_pin<N>(d[N][4])": [" also +d[j][e] memory"],
        "wgmma_operand(shared, leading, stride, swizzle, base)": [],
        **{signature: [instruction] for signature, instruction in warpgroup_products()},
    },
}
"""What is in cuda_src/ptx, as the PTX ISA writes it: the emulated twins cannot tell."""


def test_every_wrapper_is_the_instruction_it_is_meant_to_be():
    assert {path.stem: wrappers(path.stem) for path in (jit.SOURCES / "ptx").iterdir()} == PTX


BASE = """x[0] = half_to_float(float_to_half(x[1]));
  x[1] = load_if(reinterpret_cast<const unsigned char*>(x + 2), i > 0);
  x[2] = load_if(reinterpret_cast<const unsigned short*>(x + 3), i > 1);
  x[3] = load_if(x + 4, i > 2);
  x[4] = load_if(reinterpret_cast<const double*>(x + 6), i > 3);
  const float4 all = load_if(reinterpret_cast<const float4*>(x + 8), i > 4);
  x[5] = all.x + all.y + all.z + all.w;"""
SM80 = """__shared__ alignas(16) unsigned words[32][4];
  unsigned one[1], two[2], four[4];
  float d[4] = {};
  double e[2] = {};
  cp_async<4>(words[0], x);
  cp_async<16>(words[1], x, i);
  cp_async_commit();
  cp_async_wait<1>();
  cp_async_wait_all();
  ldmatrix(one, words[i]);
  ldmatrix(two, words[i]);
  ldmatrix(four, words[i]);
  ldmatrix_trans(one, words[i]);
  ldmatrix_trans(two, words[i]);
  ldmatrix_trans(four, words[i]);
  mma_m16n8k16_f16(d, four, two);
  mma_m16n8k16_bf16(d, four, two);
  two[0] = float_to_tf32(x[2]) + one[0];
  two[1] = floats_to_bf16x2(x[9], x[10]);
  mma_m16n8k8_tf32(d, four, two);
  mma_m8n8k4_f64(e, x[3], x[4]);
  double eight[8] = {x[5], x[6]}, doubles[4] = {x[7], x[8]}, f[4] = {};
  mma_m16n8k16_f64(f, eight, doubles);
  barrier_arrive(1, 64);
  barrier_sync(1, 64);
  x[threadIdx.x] = d[i] + e[i & 1] + f[i & 3];"""
SM90 = """__shared__ MBarrier barrier;
  __shared__ alignas(1024) float tile[256][32];
  if (threadIdx.x == 0) mbarrier_init(&barrier, 512);
  __syncthreads();
  if (threadIdx.x / 128 == 2) {
    setmaxnreg_dec<24>();
    return;
  }
  setmaxnreg_inc<240>();
  cp_async_mbarrier_arrive_noinc(&barrier);
  mbarrier_arrive(&barrier);
  while (!mbarrier_try_wait(&barrier, 0)) {
  }
  fence_proxy_async();
  const auto place = wgmma_operand(tile, 0, 1024, SWIZZLE_128);
  const unsigned a[4] = {1, 2, 3, 4};"""
SM90 += "".join(
    f"""
  {{
    float d[{eighths}][4];
    wgmma_fence();
    wgmma_k16_f16<true, false>(d, place, place + 64, false);
    wgmma_k16_bf16<false, true>(d, place, place + 64, i > 0);
    wgmma_k16_f16<true>(d, a, place, true);
    wgmma_k16_bf16<false>(d, a, place, true);
    wgmma_k8_tf32(d, place, place + 64, true);
    wgmma_k8_tf32(d, a, place, true);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(d);
    for (int j = 0; j < {eighths}; ++j)
      for (float sum : d[j]) *x++ = sum;
  }}"""
    for eighths in (8, 16, 32)
)
INSTRUCTION = re.compile(r"(?<![\w.%])[a-z]\w*(?:(?:\.|::)\w+)+")


@pytest.mark.parametrize(
    ("header", "uses", "capability", "threads"),
    [
        ("base", BASE, 75, 256),
        *(("sm80", f"{BASE}\n  {SM80}", capability, 256) for capability in LIMITS if capability >= 80),
        ("sm90", SM90, 90, 384),
    ],
)
def test_every_wrapper_of_ptx_compiles(header, uses, capability, threads):
    """Each instruction is there as often as there are wrappers of it."""
    made = report(f"#include <ptx/{header}.cuh>\n{planted(uses, threads)}", capability, threads)
    wanted = Counter()
    for name in {header, "base"} if header == "sm80" else {header}:
        for statements in wrappers(name, capability).values():
            wanted.update(INSTRUCTION.findall(" ".join(statements)))
    assert len(wanted) >= 2
    assert wanted - Counter(INSTRUCTION.findall(made.ptx)) == Counter()
    assert "Performance Loss" not in made.log


def test_all_sums_are_pinned():
    """One by one, by instructions that are empty."""
    body = "float d[16][4] = {}; wgmma_pin(d); x[0] = d[0][0];"
    ptx = report(f"#include <ptx/sm90.cuh>\n{planted(body)}", 90, 256).ptx
    assert len(re.findall(r"// begin inline asm\s+// end inline asm", ptx)) == 16 * 4


@pytest.mark.parametrize(
    ("swizzle", "mode"), [("NO_SWIZZLE", 0), ("SWIZZLE_128", 1), ("SWIZZLE_64", 2), ("SWIZZLE_32", 3)]
)
def test_operands_in_shared_memory_are_described_as_the_ptx_isa_has_it(swizzle, mode):
    """All fields but the address are known here, and one number in the PTX."""
    body = f"""__shared__ alignas(1024) float tile[256];
  reinterpret_cast<unsigned long long*>(x)[0] = wgmma_operand(tile + i, 0x12340, 0x2bcd0, {swizzle}, 5);"""
    made = report(f"#include <ptx/sm90.cuh>\n{planted(body)}", 90, 256)
    known = np.uint64(0x1234 << 16 | 0x2BCD << 32 | 5 << 49 | mode << 62).astype(np.int64)
    assert re.search(rf"or\.b64 .*, {known};", made.ptx)
    assert re.search(r"shr\.u\d\d .*, 4;\s*and\.b\d\d .*, 16383;", made.ptx)


@pytest.mark.parametrize("capability", [75, 90])
def test_guarded_loads_are_predicated(capability):
    """One load for each size, none of which a branch jumps over."""
    target = jit.architecture(capability, compiler.known())
    _, _, cubin = build(f"#include <ptx/base.cuh>\n{planted(BASE)}", jit.options(target))
    text = code.disassembled(cubin)
    loads = [
        code.Instruction(0, name, None, ("", 0), False) for name in re.findall(r"@!?P\d+ (LDG\S*)", text)
    ]
    assert sorted(load.access[2] for load in loads) == [1, 2, 4, 8, 16]
    made = code.loops(code.instructions(text))
    assert made[0].guarded == 0


@pytest.mark.parametrize(("capability", "product"), [(80, ("DMMA.884", 512)), (90, ("DMMA.16x8x16", 4096))])
def test_products_of_doubles_are_as_large_as_the_architecture_has_them(capability, product):
    """Of two products of 16 x 8 x 16, multiplications and additions counted apart."""
    name, flop = product
    made = code.compiled(Kernel("tensor.cuh", "product_f64_k16", (), 32), capability)
    found = [each for each in made.loops[0].own if each.starts("DMMA")]
    assert {(each.name, each.product) for each in found} == {(name, ("double", flop))}
    assert len(found) * flop == 2 * (2 * 16 * 8 * 16)


def test_a_kernel_is_for_the_architectures_whose_wrappers_it_includes(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "SOURCES", tmp_path)
    (tmp_path / "ptx").mkdir()
    (tmp_path / "ptx/sm80.cuh").write_text("")
    (tmp_path / "tile.cuh").write_text('#include <ptx/sm80.cuh>\n#include "first.cuh"\n')
    (tmp_path / "first.cuh").write_text('#pragma once\n#include "tile.cuh"\n')
    (tmp_path / "other.cuh").write_text("")
    assert capabilities(Kernel("first.cuh", "f", (), 32)) == [80, 86, 89, 90, 100, 120]
    assert capabilities(Kernel("other.cuh", "f", (), 32)) == list(LIMITS)


def test_the_report_of_the_command_line(monkeypatch, capsys):
    kernel = Kernel("params.cuh", "planted", (), 256)
    monkeypatch.setattr(algorithms, "kernels", lambda: [kernel, Kernel("params.cuh", "other", (), 256)])
    monkeypatch.setattr(Kernel, "stub", lambda self, stamp: planted(STACK))
    assert compiler.main(["--arch", "80", "--match", "plant"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  80 +\d+ +0 +256 +0 +8 +64 of 64  planted", lines[1])
    assert lines[2:] == ["     256 bytes of stack frame", "1 of 1 have problems"]
    monkeypatch.setattr(Kernel, "stub", lambda self, stamp: planted("x[0] = x[1];"))
    assert compiler.main(["--arch", "80", "90"]) == 0
    assert capsys.readouterr().out.endswith("0 of 4 have problems\n")
