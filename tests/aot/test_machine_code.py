"""What compilers write, read."""

from __future__ import annotations

from zaya_jax.aot import machine_code

STEPS = """\
001: kCopy  [source       | next=003 (2)] kCopy
003: kWhile [prev=002 (1) | sink        ]
condition:
    004: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
  body:
    005: kDynamicSliceFusion [source       | next=008 (2)] params=1, results=1
        006: kCopy [source | sink] kCopy
    007: kCustomKernel       [source       | sink        ] matmul grid: [2, 2, 1] threads: [32, 4, 1]  shared_memory: 64 bytes
008: kCustomKernel       [source       | sink        ] matmul grid: [9, 1, 1] threads: [128, 1, 1]  shared_memory: 32 bytes
"""  # noqa: E501


def test_steps_are_told_apart_by_loop():
    launches, sections = machine_code.steps_of(STEPS)
    assert sections == {
        "main": {"kCopy": 1, "kWhile": 1, "kCustomKernel": 1},
        "condition of 003": {"kCustomKernel": 1},
        "body of 003": {"kDynamicSliceFusion": 1, "kCustomKernel": 1},
    }
    assert launches["matmul"] == [
        machine_code.Step((2, 2, 1), 128, 64),
        machine_code.Step((9, 1, 1), 128, 32),
    ]


def test_collectives_are_counted_with_their_results():
    hlo = """
  %a = bf16[8,128]{1,0} all-gather(bf16[1,128]{1,0} %x), dimensions={0}
  %b = (f32[16]{0}, s8[4]{0}) all-to-all(f32[16]{0} %y, s8[4]{0} %z)
  %c = (f32[4]{0}, f32[32]{0}) all-gather-start(f32[4]{0} %y), dimensions={0}
  %d = f32[32]{0} all-gather-done((f32[4]{0}, f32[32]{0}) %c)
  %e = f32[4]{0} add(f32[4]{0} %all-reduce.1, f32[4]{0} %y)
"""
    assert machine_code.collectives_of(hlo) == {
        "all-gather": {"count": 2, "bytes": 8 * 128 * 2 + 32 * 4},
        "all-to-all": {"count": 1, "bytes": 16 * 4 + 4},
    }


def test_usage_as_ptxas_tells_it():
    said = """\
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
    720 bytes stack frame, 712 bytes spill stores, 700 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 720 bytes cumulative stack size, 16 bytes smem
"""
    assert machine_code.usage_of(said) == [
        machine_code.Usage("one", 0, 0, 64, 0),
        machine_code.Usage("two", 720, 712, 255, 16),
    ]


def test_matrix_instructions_of_ptx():
    ptx = """
    wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, p, 1, 1;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 };
    wgmma.fence.sync.aligned;
"""
    assert machine_code.matrix_of_ptx(ptx) == {
        "wgmma m64n128k16 f32.bf16.bf16": 1,
        "mma m16n8k16 f32.bf16.bf16.f32": 1,
    }


def test_buffers_are_what_steps_give_not_what_fusions_compute():
    hlo = """
%fused_computation.1 (param: f32[8]) -> f32[8] {
  %big = f32[8,999]{1,0} broadcast(%param)
}

ENTRY %main (x: f32[8]) -> (f32[8], s32[]) {
  %x = f32[8]{0} parameter(0)
  %pair = (bf16[4,2]{1,0}, pred[3]{0}) custom-call(%x)
  ROOT %out = f32[8]{0} fusion(%x), calls=%fused_computation.1
}
"""
    assert machine_code.buffers_of(hlo) == {
        ("f32", (8,)),
        ("bf16", (4, 2)),
        ("pred", (3,)),
    }


def test_operands_and_results_of_matrix_products_but_not_those_of_our_kernels():
    hlo = """
%fused (p: bf16[6,5], q: bf16[5,7]) -> f32[6,7] {
  %p = bf16[6,5]{1,0} parameter(0)
  %q = bf16[5,7]{1,0} parameter(1)
  ROOT %dot.1 = f32[6,7]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[4,8], y: bf16[8,2]) -> f32[4,2] {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = bf16[8,2]{1,0} parameter(1)
  %ours = f32[99,98]{1,0} custom-call(%x, %y), custom_call_target="__gpu$xla.gpu.triton"
  %c = (f32[4,2]{1,0}, s8[256]{0}) custom-call(%x, %y), custom_call_target="__cublas$lt$matmul"
  ROOT %out = f32[4,2]{1,0} get-tuple-element(%c), index=0
}
"""
    shapes = {(6, 5), (5, 7), (6, 7), (4, 8), (8, 2), (4, 2)}
    assert machine_code.matmuls_of(hlo) == shapes


def test_bytes_of_the_steps_around_kernels():
    hlo = """
%fused (p: f32[8]) -> f32[8] {
  %big = f32[999]{0} broadcast(%p)
}

ENTRY %main (x: f32[8], y: bf16[4]) -> f32[2] {
  %x = f32[8]{0} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %k = (f32[64]{0}, f32[2]{0}) custom-call(%x, /*index=1*/%y), custom_call_target="__gpu$xla.gpu.triton"
  %part = f32[64]{0} get-tuple-element(%k), index=0
  %sum = f32[2]{0} fusion(%part, %y), kind=kLoop, calls=%fused, metadata={op_name="a(b)"}
  ROOT %out = f32[2]{0} copy(%sum)
}
"""  # noqa: E501
    assert machine_code.other_bytes_of(hlo) == (256 + 8 + 8) + (8 + 8)


def test_a_librarys_workspace_is_no_traffic():
    matmul = (
        "\nENTRY %main (a: bf16[4,8], b: bf16[8,2]) -> f32[4,2] {\n"
        "  %a = bf16[4,8]{1,0} parameter(0)\n"
        "  %b = bf16[8,2]{1,0} parameter(1)\n"
        "  %c = (f32[4,2]{1,0}, s8[79691776]{0}) custom-call(%a, %b), "
        'custom_call_target="__cublas$lt$matmul"\n'
        "  ROOT %d = f32[4,2]{1,0} get-tuple-element(%c), index=0\n}\n"
    )
    assert machine_code.other_bytes_of(matmul) == 4 * 8 * 2 + 8 * 2 * 2 + 4 * 2 * 4
