"""The machine of tests/gpu/ptx reports every kind of fault, and none where there is none."""

import pytest
import torch

from tests.gpu.ptx.kernel import FALLING, RISING, Order
from tests.gpu.snippets import kinds, launch

pytestmark = pytest.mark.slow  # the first test compiles the machine

# Each thread stores its number in shared memory, then reads that of thread ^ DISTANCE.
EXCHANGE = """
    st.shared.u32 [%r4], %r0;
    BARRIER
    xor.b32 %r5, %r0, DISTANCE;
    shl.b32 %r6, %r5, 2;
    add.s32 %r7, %r2, %r6;
    ld.shared.u32 %r8, [%r7];
    st.global.u32 [%rd2], %r8;
"""
RACE, LATE_STORE = "race, read after write", "race, write after read"


def exchange(barrier, distance, **options):
    body = EXCHANGE.replace("BARRIER", barrier).replace("DISTANCE", str(distance))
    data = torch.zeros(64, dtype=torch.int32)
    return launch(body, data, **options), data


@pytest.mark.parametrize("seed", [RISING, FALLING, 5])
@pytest.mark.parametrize(
    ("barrier", "distance", "faults"),
    [
        ("bar.sync 0;", 1, set()),
        ("bar.sync 0;", 32, set()),
        ("barrier.sync.aligned 0, 64;", 32, set()),
        ("bar.warp.sync -1;", 1, set()),
        ("bar.warp.sync -1;", 32, {RACE}),
        ("membar.cta;", 32, {RACE}),  # a fence orders nothing by itself
    ],
)
def test_races_in_shared_memory(barrier, distance, faults, seed):
    run, data = exchange(barrier, distance, order=Order(seed))
    # A late store is the same race, seen from its other end.
    assert faults == kinds(run) - {LATE_STORE, "uninitialised shared byte"}
    if not faults:
        assert not run.faults
        assert torch.equal(data, torch.arange(64, dtype=torch.int32) ^ distance)


def test_a_race_between_the_lanes_of_a_warp_without_barrier():
    run, _ = exchange("", 1)
    assert kinds(run) == {RACE}


def test_stores_of_the_same_value_do_not_race():
    body = "mov.u32 %r5, VALUE; st.shared.u32 [%r2], %r5;"
    assert kinds(launch(body.replace("VALUE", "7"))) == set()
    assert kinds(launch(body.replace("VALUE", "%tid.x"))) == {"race, write after write"}


@pytest.mark.parametrize(("bits", "quiet"), [(32, 0x7FC00000), (64, 0x7FF8000000000000)])
@pytest.mark.parametrize("add", ["add", "mul", "fma", "sub"])
def test_sums_of_the_same_nans_in_another_order_do_not_race(add, bits, quiet):
    """As lanes of Triton's reductions have them that hold the same numbers."""
    a, b, found = ("%r9", "%r10", "%r11") if bits == 32 else ("%rd6", "%rd7", "%rd8")
    operands = f"{a}, {b}, {a}" if add == "fma" else f"{a}, {b}"
    body = f"""
        mov.b{bits} {a}, {quiet + 1};
        mov.b{bits} {b}, {quiet + 2};
        and.b32 %r5, %r0, 1;
        setp.eq.u32 %p1, %r5, 0;
        @%p1 mov.b{bits} {a}, {quiet + 2};
        @%p1 mov.b{bits} {b}, {quiet + 1};
        {add}.rn.f{bits} {found}, {operands};
        st.shared.b{bits} [%r2], {found};
    """
    assert kinds(launch(body)) == set()


def test_blocks_are_never_ordered():
    body = """
        mov.u32 %r5, %ctaid.x;
        st.global.u32 [%rd2], %r5;
        bar.sync 0;
        ld.global.u32 %r6, [%rd2];
    """
    assert kinds(launch(body)) == set()
    assert "race, write after write" in kinds(launch(body, blocks=2))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("ld.global.u32 %r5, [%rd2+4];", "global read out of bounds"),
        ("st.global.u32 [%rd2+-4], %r0;", "global write out of bounds"),
        ("ld.global.v2.u32 {%r5, %r6}, [%rd0+252];", "global read out of bounds"),
        ("st.shared.u32 [%r4+4], %r0;", "shared memory out of bounds"),
        ("ld.shared.u32 %r5, [words+256];", "shared memory out of bounds"),
        ("ld.global.u32 %r5, [%rd0+2];", "misaligned"),
        ("ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd0+8];", "misaligned"),
        ("st.shared.v2.u32 [words+4], {%r0, %r0};", "misaligned"),
        ("ld.shared.u8 %r5, [words+3];", "uninitialised shared byte"),
        ("st.shared.u8 [words], 1; ld.shared.u16 %r5, [words];", "uninitialised shared byte"),
        ("ld.global.u32 %r5, [%rd8];", "undefined register"),
        ("st.global.u32 [%rd2], %r9;", "undefined register"),
        ("add.s32 %r9, %r8, 1; st.global.u32 [%rd2], %r9;", "undefined register"),
        ("bar.sync %r9;", "undefined register"),
        ("@%p0 bra END; END:", "undefined predicate"),
        ("setp.eq.u32 %p0, %r0, 0; @%p0 setp.eq.u32 %p1, %r0, 0; @%p1 mov.u32 %r5, 1;",
         "undefined predicate"),
        ("ld.param.u64 %rd3, [data+8];", "parameter beyond the end"),
    ],
)  # fmt: skip
def test_what_memory_and_registers_do_not_hold(body, fault):
    assert fault in kinds(launch(body))


@pytest.mark.parametrize(("chosen", "faults"), [("%p0", set()), ("%p1", {"undefined register"})])
def test_an_undefined_register_may_be_passed_over(chosen, faults):
    body = f"""
        setp.lt.u32 %p0, %r0, 32;
        setp.lt.u32 %p1, %r0, 33;
        @%p0 mov.u32 %r5, 1;
        selp.b32 %r6, %r5, 0, {chosen};
        st.global.u32 [%rd2], %r6;
    """
    assert kinds(launch(body)) == faults


@pytest.mark.parametrize(("half", "faults"), [(5, set()), (6, {"undefined register"})])
def test_half_of_a_register_may_stay_undefined(half, faults):
    body = f"""
        mov.b64 %rd3, {{%r0, %r9}};
        add.rn.f32x2 %rd4, %rd3, %rd3;
        mov.b64 {{%r5, %r6}}, %rd4;
        st.global.u32 [%rd2], %r{half};
    """
    assert kinds(launch(body)) == faults


@pytest.mark.parametrize(("byte", "faults"), [(1, set()), (2, {"undefined register"})])
def test_bytes_are_chosen_of_the_half_that_is_defined(byte, faults):
    body = f"""
        cvt.u16.u32 %rs1, %r0;
        mov.b32 %r5, {{%rs1, %rs8}};
        prmt.b32 %r6, %r5, 0, 0x777{byte};
        st.global.u32 [%rd2], %r6;
    """
    assert kinds(launch(body)) == faults


DIVERGENT = """
    setp.lt.u32 %p0, %r1, 16;
    @%p0 bra LOW;
    bar.sync 0;
    bra END;
LOW:
    bar.sync 0;
END:
"""
UNREACHED = """
    setp.lt.u32 %p0, %r0, 32;
    @%p0 bra FIRST;
    bar.sync 1;
    bra END;
FIRST:
    bar.sync 0;
END:
"""
FEWER = "bar.sync 0, 32;"
LEFT_BEHIND = """
    setp.lt.u32 %p0, %r1, 16;
    @%p0 bra LOW;
    bar.sync 0;
    bra END;
LOW:
    bar.warp.sync -1;
END:
"""
ENDED = """
    setp.lt.u32 %p0, %r1, 16;
    @%p0 ret;
    shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;
"""
ABSENT = """
    setp.lt.u32 %p0, %r1, 16;
    @%p0 shfl.sync.idx.b32 %r5, %r0, 20, 31, 0xffff;
"""


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (DIVERGENT, "the lanes of a warp wait at different barriers"),
        (UNREACHED, "a barrier that not all threads reach"),
        (FEWER, "a barrier that not all threads reach"),
        (LEFT_BEHIND, "a warp operation that not all its lanes reach"),
        (ENDED, "a warp operation names lanes that have ended"),
        (ABSENT, "shuffle from an absent lane"),
    ],
)
def test_lanes_that_do_not_come_together(body, fault):
    assert fault in kinds(launch(body))


def test_a_barrier_in_a_branch_that_all_take_is_none():
    body = "setp.lt.u32 %p0, %r0, 64; @!%p0 bra END; bar.sync 0; END:"
    assert not launch(body).faults


def test_a_loop_without_end_is_ended():
    run = launch("AGAIN: add.s32 %r5, %r0, 1; bra AGAIN;", most_instructions=10_000)
    assert kinds(run) == {"a launch that does not end"}


def test_lanes_that_part_and_meet_exchange_afterwards():
    body = """
        setp.lt.u32 %p0, %r1, 16;
        mov.u32 %r5, 1;
        @%p0 bra MEET;
        mov.u32 %r5, 2;
    MEET:
        shfl.sync.bfly.b32 %r6, %r5, 16, 31, -1;
        st.global.u32 [%rd2], %r6;
    """
    data = torch.zeros(64, dtype=torch.int32)
    assert not launch(body, data).faults
    assert data.view(4, 16).tolist() == [[2] * 16, [1] * 16] * 2


def test_a_fault_names_its_instruction_and_the_first_thread():
    (fault,) = launch("ld.global.u32 %r5, [%rd2+8];").faults
    assert fault.instruction == "ld.global.u32 %r5, [%rd2+8]"
    assert "block 0,0,0 thread 62" in fault.detail


# Every thread adds 1 to one word, without a lock.
COUNTER = """
    ld.global.u32 %r5, [%rd0];
    add.s32 %r6, %r5, 1;
    add.s32 %r7, %r6, 0;
    st.global.u32 [%rd0], %r6;
"""


def test_warps_also_switch_between_barriers():
    def count(order):
        data = torch.zeros(256, dtype=torch.int32)
        launch(COUNTER, data, threads=256, order=order)
        return int(data[0])

    assert count(Order(RISING)) == count(Order(FALLING)) == 8  # a warp each
    assert {count(Order(seed, switches=True)) for seed in range(2, 8)} - {8}
    assert count(Order(3, switches=True)) == count(Order(3, switches=True))


@pytest.mark.parametrize(
    "line",
    [
        "atom.global.add.u32 %r5, [%rd2], 1;",
        "cp.async.ca.shared.global [%r4], [%rd2], 4;",
        "tanh.approx.f32 %r5, %r0;",
        "add.sat.s32 %r5, %r0, 1;",
        "cvt.rz.f32.f64 %r5, %rd0;",
        "bar.arrive 0, 64;",
        "vote.sync.any.pred %p0, %p1, -1;",
        "cvta.shared.u64 %rd3, %rd2;",
        "setp.eq.s32 %p0|%p1, %r0, 0;",
    ],
)
def test_what_the_machine_lacks_is_an_error(line):
    with pytest.raises(NotImplementedError):
        launch(line)


def test_traffic_is_counted():
    def traffic(body):
        run = launch(body, torch.zeros(256, dtype=torch.int32), threads=32)
        # The first access is to the parameter, which counts as none.
        (row,) = run.counts[run.counts["requests"] > 0].tolist()
        return list(row[1:])

    # requests, lanes, bytes, sectors or wavefronts, the least number of them
    assert traffic("st.global.u32 [%rd2], %r0;") == [1, 32, 128, 4, 4]
    wide = "shl.b32 %r5, %r0, 3; cvt.u64.u32 %rd3, %r5; add.s64 %rd4, %rd0, %rd3;"
    assert traffic(wide + "st.global.u32 [%rd4], %r0;") == [1, 32, 128, 8, 4]
    assert traffic("st.shared.u32 [%r4], %r0;") == [1, 32, 128, 1, 1]
    wide = "shl.b32 %r5, %r0, 3; add.s32 %r6, %r2, %r5;"
    assert traffic(wide + "st.shared.u32 [%r6], %r0;") == [1, 32, 128, 2, 1]
    assert traffic("st.shared.u32 [%r2], 7;") == [1, 32, 4, 1, 1]
