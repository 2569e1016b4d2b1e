"""The account of a GPU program, on a text as XLA writes it."""

from benchmarks.gpu_program import Account, read_program

PROGRAM = """HloModule jit_train_step

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %made = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%body
  %all-reduce-start = f32[8,4]{1,0} all-reduce-start(%made), to_apply=%sum
  %conv = (f32[8,4]{1,0}, u8[16]{0}) custom-call(%x, %x), custom_call_target="__cudnn$convForward"
  %part = f32[8,4]{1,0} get-tuple-element(%conv), index=0
  %copy.1 = f32[8,4]{1,0} copy(%part)
  %all-reduce-done = f32[8,4]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %end = f32[8,4]{1,0} fusion(%copy.1, %all-reduce-done), kind=kLoop, calls=%body
}
"""


def test_every_launch_is_counted_with_its_bytes():
    account = Account(read_program(PROGRAM), peak_bytes=0, flops=0)
    assert [each.kind for each in account.instructions] == [
        "fusion",
        "all-reduce-start",
        "__cudnn$convForward",
        "copy",
        "fusion",
    ]
    assert account.total("copy") == (1, 2 * 128e-9)
    assert account.total("__cudnn") == (1, (2 * 128 + 128 + 16) / 1e9)
    assert account.total()[0] == 5


def test_what_runs_during_a_collective_is_counted():
    assert [each.meanwhile for each in read_program(PROGRAM)] == [0, 2, 0, 0, 0]
