//! The machine: lanes, warps and blocks together, and every check tripped once.
#![allow(clippy::unwrap_used)]

use half::bf16;

use crate::{Argument, DevicePointer, Emulator, EmulatorError, HazardKind, Options, Report};

const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// A kernel with the pointers `x` and `y` in %x and %y, its thread in %t and 4 · thread in %o.
fn kernel(body: &str) -> String {
    format!(
        "{HEADER}.extern .shared .align 16 .b8 dynamic[];\n\
         .visible .entry test(.param .u64 px, .param .u64 py)\n{{\n\
         .reg .b64 %x, %y, %d<9>;\n.reg .b32 %t, %o, %r<20>;\n.reg .f32 %f<20>;\n.reg .pred %p<9>;\n\
         .shared .align 16 .b8 fixed[2048];\n\
         ld.param.u64 %x, [px];\nld.param.u64 %y, [py];\nmov.u32 %t, %tid.x;\nshl.b32 %o, %t, 2;\n\
         mad.wide.u32 %d0, %t, 4, %x;\nmad.wide.u32 %d1, %t, 4, %y;\n{body}\nret;\n}}\n"
    )
}

struct Run {
    device: Emulator,
    x: DevicePointer,
    y: DevicePointer,
}

impl Run {
    /// x holds 0, 1, 2, …; y holds 4096 zeros.
    fn new(seed: u64) -> Self {
        let mut device = Emulator::new(Options { seed, instruction_limit: 10_000_000, ..Options::default() });
        let x = device.upload(&(0..1024).collect::<Vec<u32>>()).unwrap();
        let y = device.upload(&[0_u32; 4096]).unwrap();
        Self { device, x, y }
    }

    fn launch(&mut self, text: &str, grid: u32, block: u32) -> Result<Report, EmulatorError> {
        let module = self.device.load_module(text)?;
        let arguments = [self.x.into(), self.y.into()];
        self.device.launch(&module.function("test")?, [grid, 1, 1], [block, 1, 1], 1024, &arguments)
    }

    fn y(&mut self, count: usize) -> Vec<u32> {
        self.device.download(self.y, count).unwrap()
    }
}

/// What y is after a body that must be clean.
fn clean(body: &str, grid: u32, block: u32, count: usize) -> Vec<u32> {
    let mut run = Run::new(5);
    let report = run.launch(&kernel(body), grid, block).unwrap_or_else(|error| panic!("{body}: {error}"));
    assert!(report.hazards.is_empty(), "{body}: {}", report.hazards[0]);
    run.y(count)
}

fn fault(body: &str, block: u32) -> String {
    Run::new(5).launch(&kernel(body), 1, block).unwrap_err().to_string()
}

fn hazard(body: &str, grid: u32, block: u32, kind: HazardKind) -> String {
    let report = Run::new(5).launch(&kernel(body), grid, block).unwrap();
    let found = report.hazards.iter().find(|hazard| hazard.kind == kind);
    found.unwrap_or_else(|| panic!("{body}: {:?}", report.hazards)).to_string()
}

#[test]
fn divergent_loops_and_calls_meet_again() {
    let body = "mov.u32 %r1, 0;\nmov.u32 %r2, %t;\n\
        LOOP:\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra END;\nadd.u32 %r1, %r1, %r2;\nsub.u32 %r2, %r2, 1;\nbra LOOP;\n\
        END:\nshfl.sync.bfly.b32 %r3, %r1, 1, 0x1f, -1;\nst.global.u32 [%d1], %r3;";
    let sums: Vec<u32> = (0..64_u32).map(|lane| (0..=(lane ^ 1)).sum()).collect();
    assert_eq!(clean(body, 1, 64, 64), sums);

    let call = format!(
        "{HEADER}.func (.param .b32 result) triple (.param .b32 number)\n{{\n.reg .b32 a;\n.reg .pred p;\n\
         ld.param.u32 a, [number];\nsetp.gt.u32 p, a, 9;\n@p bra BIG;\nmul.lo.u32 a, a, 3;\nst.param.b32 [result], a;\n\
         ret;\nBIG:\nst.param.b32 [result], 0;\nret;\n}}\n{}",
        kernel(
            "setp.ne.u32 %p1, %t, 3;\nmov.u32 %r2, 77;\n{\n.param .b32 a;\n.param .b32 b;\n.reg .b32 %r2;\n\
             st.param.b32 [a], %t;\n@%p1 call.uni (b), triple, (a);\n@%p1 ld.param.b32 %r2, [b];\n\
             @!%p1 mov.u32 %r2, 5;\nst.global.u32 [%d1], %r2;\n}\nst.global.u32 [%d1+256], %r2;"
        )
        .replace(HEADER, "")
    );
    let mut run = Run::new(0);
    run.launch(&call, 1, 12).unwrap();
    assert_eq!(run.y(12), [0, 3, 6, 5, 12, 15, 18, 21, 24, 27, 0, 0]);
    assert_eq!(run.y(65)[64], 77);
}

#[test]
fn shuffles_votes_matches_and_reductions() {
    let shuffle = |form: &str| clean(&format!("shfl.sync.{form}, -1;\nst.global.u32 [%d1], %r1;"), 1, 32, 32);
    let lanes = |function: fn(u32) -> u32| (0..32).map(function).collect::<Vec<_>>();
    assert_eq!(shuffle("up.b32 %r1, %t, 3, 0"), lanes(|lane| if lane < 3 { lane } else { lane - 3 }));
    assert_eq!(shuffle("down.b32 %r1, %t, 2, 0x1f"), lanes(|lane| if lane > 29 { lane } else { lane + 2 }));
    assert_eq!(shuffle("bfly.b32 %r1, %t, 16, 0x1f"), lanes(|lane| lane ^ 16));
    // In segments of eight lanes.
    assert_eq!(shuffle("idx.b32 %r1|%p1, %t, 5, 0x181f"), lanes(|lane| lane / 8 * 8 + 5));
    assert_eq!(
        shuffle("down.b32 %r1, %t, 2, 0x181f"),
        lanes(|lane| if lane % 8 > 5 { lane } else { lane + 2 })
    );

    let vote = |code: &str| {
        clean(
            &format!("and.b32 %r2, %t, 1;\nsetp.eq.u32 %p1, %r2, 1;\n{code}\nst.global.u32 [%d1], %r1;"),
            1,
            32,
            32,
        )
    };
    assert_eq!(vote("vote.sync.ballot.b32 %r1, %p1, -1;"), [0xaaaa_aaaa; 32]);
    assert_eq!(vote("vote.sync.any.pred %p2, %p1, -1;\nselp.u32 %r1, 1, 0, %p2;"), [1; 32]);
    assert_eq!(vote("vote.sync.all.pred %p2, !%p1, -1;\nselp.u32 %r1, 1, 0, %p2;"), [0; 32]);
    assert_eq!(
        vote("match.any.sync.b32 %r1, %r2, -1;"),
        lanes(|lane| if lane % 2 == 1 { 0xaaaa_aaaa } else { 0x5555_5555 })
    );
    assert_eq!(vote("redux.sync.add.s32 %r1, %t, -1;"), [496; 32]);
    assert_eq!(vote("sub.u32 %r3, 7, %t;\nredux.sync.min.s32 %r1, %r3, -1;"), [(-24_i32) as u32; 32]);
    assert_eq!(
        vote("mov.u32 %r1, 0;\n@%p1 activemask.b32 %r1;"),
        lanes(|lane| if lane % 2 == 1 { 0xaaaa_aaaa } else { 0 })
    );
}

const REVERSE: &str = "mov.u32 %r1, fixed;\nadd.u32 %r2, %r1, %o;\nst.shared.u32 [%r2], %t;\nBARRIER\n\
    sub.u32 %r3, 127, %t;\nshl.b32 %r3, %r3, 2;\nadd.u32 %r3, %r1, %r3;\nld.shared.u32 %r4, [%r3];\n\
    st.global.u32 [%d1], %r4;";

#[test]
fn a_barrier_orders_shared_memory_and_a_missing_one_is_a_race() {
    let reversed: Vec<u32> = (0..128).rev().collect();
    assert_eq!(clean(&REVERSE.replace("BARRIER", "bar.sync 0;"), 1, 128, 128), reversed);
    // A named barrier of all four warps, and a generic address.
    let generic = REVERSE.replace("BARRIER", "barrier.sync 3, 128;").replace(
        "ld.shared.u32 %r4, [%r3]",
        "cvt.u64.u32 %d3, %r3;\ncvta.shared.u64 %d3, %d3;\nld.u32 %r4, [%d3]",
    );
    assert_eq!(clean(&generic, 1, 128, 128), reversed);
    let message = hazard(&REVERSE.replace("BARRIER", ""), 1, 128, HazardKind::SharedRace);
    assert!(
        message.contains("kernel test, block (0, 0, 0)") && message.contains("no barrier between them"),
        "{message}"
    );
    // A barrier orders what came before it, not what comes after.
    hazard(&format!("bar.sync 0;\n{}", REVERSE.replace("BARRIER", "")), 1, 128, HazardKind::SharedRace);
    // Two of the warps meet without the others: only the pairs 0-3 and 1-2 must.
    let half = REVERSE.replace("BARRIER", "shr.u32 %r5, %t, 6;\nadd.u32 %r5, %r5, 1;\nbarrier.sync %r5, 64;");
    hazard(&half, 1, 128, HazardKind::SharedRace);
}

#[test]
fn a_barrier_counts_votes() {
    let body = "setp.lt.u32 %p1, %t, 40;\nbarrier.red.popc.u32 %r1, 0, %p1;\nbarrier.red.or.pred %p2, 0, %p1;\n\
        selp.u32 %r2, 1000, 0, %p2;\nadd.u32 %r1, %r1, %r2;\nst.global.u32 [%d1], %r1;";
    assert_eq!(clean(body, 1, 96, 96), [1040; 96]);
}

#[test]
fn barriers_that_not_all_reach_are_reported() {
    let some = "setp.ge.u32 %p1, %t, 64;\n@%p1 ret;\nbar.sync 0;";
    let message = hazard(some, 1, 256, HazardKind::BarrierAfterExit);
    assert!(message.contains("192 threads exited before a barrier that 64 wait at"), "{message}");
    let message = fault("setp.lt.u32 %p1, %t, 32;\n@%p1 bar.sync 1, 64;\nbar.sync 0;", 64);
    assert!(message.contains("is never complete"), "{message}");
    let message = fault("setp.lt.u32 %p1, %t, 16;\n@%p1 bra A;\nbar.sync 0;\nret;\nA:\nbar.sync 1;", 32);
    assert!(message.contains("wait for each other at different instructions"), "{message}");
}

#[test]
fn member_masks_are_checked() {
    let message = fault("shfl.sync.idx.b32 %r1, %t, 0, 0x1f, 0xffff;", 32);
    assert!(
        message.contains("thread (16, 0, 0)") && message.contains("not in its own member mask"),
        "{message}"
    );
    let message = fault("setp.gt.u32 %p1, %t, 7;\n@%p1 ret;\nbar.warp.sync -1;", 32);
    assert!(message.contains("lanes that have exited: 0xffffff00"), "{message}");
    let message = fault("shfl.sync.down.b32 %r1, %t, 1, 0x1f, -1;", 20);
    assert!(message.contains("reads from lane 20, which does not take part"), "{message}");
    let message = fault(
        "setp.gt.u32 %p1, %t, 7;\n@%p1 bra A;\nvote.sync.any.pred %p2, %p1, -1;\nret;\nA: bar.warp.sync -1;",
        32,
    );
    assert!(message.contains("wait for each other"), "{message}");
}

#[test]
fn accesses_outside_or_misaligned_are_faults_that_name_the_thread() {
    let message = fault("ld.global.u32 %r1, [%d0+3100];", 256);
    assert!(message.contains("ends 0 bytes before the access does"), "{message}");
    assert!(
        message.contains("thread (249, 0, 0)") || message.contains("outside every allocation"),
        "{message}"
    );
    assert!(fault("ld.global.f32 %f1, [%d0+2];", 32).contains("is not a multiple of its size"));
    assert!(fault("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d0];", 32).contains("thread (1, 0, 0)"));
    assert!(
        fault("mov.u32 %r1, 3072;\nst.shared.u32 [%r1], %t;", 32).contains("3072 bytes of shared memory")
    );
    assert!(fault("ld.local.u32 %r1, [0];", 32).contains("0 bytes of local memory"));
    assert!(fault("ld.param.u64 %d5, [px+16];", 32).contains("parameters"));
    let mut run = Run::new(0);
    run.device.free(run.x).unwrap();
    let message = run.launch(&kernel("ld.global.u32 %r1, [%d0];"), 1, 32).unwrap_err().to_string();
    assert!(message.contains("that was freed"), "{message}");
    assert!(run.device.free(run.x).is_err());
}

#[test]
fn uninitialised_reads_are_hazards() {
    let body =
        "mov.u32 %r1, dynamic;\nadd.u32 %r1, %r1, %o;\nld.shared.u32 %r2, [%r1];\nst.global.u32 [%d1], %r2;";
    let message = hazard(body, 1, 32, HazardKind::Uninitialised);
    assert!(message.contains("(and 31 more there)"), "{message}");
    let mut run = Run::new(0);
    run.x = run.device.alloc(4096).unwrap();
    let report = run.launch(&kernel("ld.global.u16 %r1, [%d0];\nst.global.u32 [%d1], %r1;"), 1, 32).unwrap();
    assert_eq!(report.hazards[0].kind, HazardKind::Uninitialised);
    assert_eq!(run.y(1), [0xffff]);
}

#[test]
fn blocks_on_the_same_global_memory_are_a_race_unless_by_atomics() {
    hazard("st.global.u32 [%y], %t;", 2, 1, HazardKind::GlobalRace);
    hazard("ld.global.u32 %r1, [%y];\nst.global.u32 [%y], %r1;", 2, 1, HazardKind::GlobalRace);
    hazard(
        "setp.eq.u32 %p1, %t, 0;\n@%p1 st.global.u32 [%y], 7;\nld.global.u32 %r1, [%y];",
        1,
        64,
        HazardKind::GlobalRace,
    );
    assert_eq!(clean("atom.global.add.u32 %r1, [%y], 2;", 3, 64, 1), [384]);
}

#[test]
fn atomics() {
    assert_eq!(clean("red.global.max.s32 [%y], %t;", 1, 64, 1), [63]);
    assert_eq!(clean("atom.global.inc.u32 %r1, [%y], 4;", 1, 12, 1), [2]);
    assert_eq!(clean("atom.global.cas.b32 %r1, [%y], 0, 9;\nst.global.u32 [%d1+64], %r1;", 1, 1, 17)[0], 9);
    assert_eq!(
        clean("mov.f32 %f1, 0f3F800000;\nred.global.add.f32 [%y], %f1;", 1, 64, 1),
        [64.0_f32.to_bits()]
    );
    // The order of lanes is drawn: what each finds differs by seed.
    let body = kernel("atom.global.add.u32 %r1, [%y], 1;\nst.global.u32 [%d1+64], %r1;");
    let orders: Vec<Vec<u32>> = (0..4)
        .map(|seed| {
            let mut run = Run::new(seed);
            run.launch(&body, 1, 32).unwrap();
            run.y(48)
        })
        .collect();
    assert!(orders.windows(2).any(|pair| pair[0] != pair[1]));
}

const COPY: &str = "mov.u32 %r1, fixed;\nshl.b32 %r2, %t, 4;\nadd.u32 %r1, %r1, %r2;\nst.shared.u32 [%r1], 55;\n\
    mad.wide.u32 %d2, %t, 16, %x;\ncp.async.cg.shared.global [%r1], [%d2], 16;\ncp.async.commit_group;\n\
    cp.async.ca.shared.global [%r1+512], [%d2], 8, 4;\ncp.async.commit_group;\nWAIT\n\
    ld.shared.u32 %r3, [%r1];\nst.global.u32 [%d1], %r3;";

#[test]
fn an_asynchronous_copy_is_seen_after_its_wait_only() {
    let words: Vec<u32> = (0..32).map(|lane| lane * 4).collect();
    assert_eq!(clean(&COPY.replace("WAIT", "cp.async.wait_group 1;"), 1, 32, 32), words);
    assert_eq!(clean(&COPY.replace("WAIT", "cp.async.wait_all;"), 1, 32, 32), words);
    // The second group has come too: four bytes of its eight, the others 0.
    let second = COPY.replace("WAIT", "cp.async.wait_group 0;").replace(
        "ld.shared.u32 %r3, [%r1]",
        "ld.shared.v2.u32 {%r3, %r4}, [%r1+512];\nadd.u32 %r3, %r3, %r4",
    );
    assert_eq!(clean(&second, 1, 32, 32), words);
    let early = kernel(&COPY.replace("WAIT", "cp.async.wait_group 2;"));
    let mut run = Run::new(0);
    let report = run.launch(&early, 1, 32).unwrap();
    assert_eq!(report.hazards[0].kind, HazardKind::CopyInFlight);
    assert_eq!(run.y(32), [55; 32]);
}

/// A 16 × 16 times 16 × 8 product through `ldmatrix`, B by rows and transposed on the way.
#[test]
fn matrix_instructions_multiply() {
    let body = "mov.u32 %r1, fixed;\nshl.b32 %r2, %t, 4;\nadd.u32 %r3, %r1, %r2;\nmad.wide.u32 %d2, %t, 16, %x;\n\
        ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d2];\nst.shared.v4.u32 [%r3], {%r4, %r5, %r6, %r7};\n\
        and.b32 %r8, %t, 15;\nmad.wide.u32 %d2, %r8, 16, %x;\nld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d2+512];\n\
        shl.b32 %r9, %r8, 4;\nadd.u32 %r9, %r1, %r9;\nst.shared.v4.u32 [%r9+512], {%r4, %r5, %r6, %r7};\n\
        bar.warp.sync -1;\nshl.b32 %r10, %r8, 5;\nshr.u32 %r11, %t, 4;\nshl.b32 %r11, %r11, 4;\n\
        add.u32 %r10, %r10, %r11;\nadd.u32 %r10, %r10, %r1;\n\
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r10];\n\
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r12, %r13}, [%r9+512];\n\
        mov.f32 %f1, 0f3F800000;\n\
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5}, {%r4, %r5, %r6, %r7}, {%r12, %r13}, {%f1, %f1, %f1, %f1};\n\
        shr.u32 %r14, %t, 2;\nand.b32 %r15, %t, 3;\nshl.b32 %r14, %r14, 5;\nshl.b32 %r15, %r15, 3;\n\
        add.u32 %r14, %r14, %r15;\ncvt.u64.u32 %d3, %r14;\nadd.u64 %d3, %y, %d3;\n\
        st.global.v2.f32 [%d3], {%f2, %f3};\nst.global.v2.f32 [%d3+256], {%f4, %f5};";
    let a: Vec<f32> = (0..256).map(|at| (at * 7 % 23) as f32 - 11.0).collect();
    let b: Vec<f32> = (0..128).map(|at| (at * 5 % 17) as f32 - 8.0).collect();
    let mut run = Run::new(0);
    let values: Vec<bf16> = a.iter().chain(&b).map(|value| bf16::from_f32(*value)).collect();
    run.x = run.device.upload(&values).unwrap();
    let report = run.launch(&kernel(body), 1, 32).unwrap();
    assert!(report.hazards.is_empty(), "{}", report.hazards[0]);
    assert_eq!((report.matrix_multiplies, report.flops), (1, 2 * 16 * 8 * 16));
    let found: Vec<f32> = run.device.download(run.y, 128).unwrap();
    for row in 0..16 {
        for column in 0..8 {
            let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
            assert_eq!(found[row * 8 + column], sum + 1.0, "{row}, {column}");
        }
    }
    assert!(fault("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%o];", 16).contains("all 32 lanes"));
}

/// m16n8k8 in tf32 with every lane's numbers worked out by hand: A(row, k) = row, B(k, column) = k + column.
#[test]
fn tf32_products_have_their_own_layout() {
    let body = "shr.u32 %r1, %t, 2;\nand.b32 %r2, %t, 3;\ncvt.rn.f32.u32 %f1, %r1;\nadd.f32 %f2, %f1, 0f41000000;\n\
        add.u32 %r3, %r1, %r2;\ncvt.rn.f32.u32 %f3, %r3;\nadd.f32 %f4, %f3, 0f40800000;\n\
        mov.b32 %r4, %f1;\nmov.b32 %r5, %f2;\nmov.b32 %r6, %f3;\nmov.b32 %r7, %f4;\nmov.f32 %f5, 0f00000000;\n\
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f6, %f7, %f8, %f9}, {%r4, %r5, %r4, %r5}, {%r6, %r7}, {%f5, %f5, %f5, %f5};\n\
        mad.wide.u32 %d3, %t, 16, %y;\nst.global.v4.f32 [%d3], {%f6, %f7, %f8, %f9};";
    let mut run = Run::new(0);
    run.launch(&kernel(body), 1, 32).unwrap();
    let found: Vec<f32> = run.device.download(run.y, 128).unwrap();
    for (lane, values) in found.chunks(4).enumerate() {
        for (at, value) in values.iter().enumerate() {
            let (row, column) = (lane / 4 + at / 2 * 8, lane % 4 * 2 + at % 2);
            let sum: usize = (0..8).map(|k| row * (k + column)).sum();
            assert_eq!(*value, sum as f32, "{row}, {column}");
        }
    }
}

#[test]
fn device_code_prints_and_asserts() {
    let text = format!(
        "{HEADER}.extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);\n\
         .extern .func __assertfail (.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);\n\
         .global .align 1 .b8 format[12] = {{116, 37, 117, 32, 37, 102, 10}};\n.global .align 1 .b8 name[3] = {{110, 62}};\n{}",
        kernel(
            ".local .align 8 .b8 depot[16];\nmov.u64 %d2, depot;\nst.local.u32 [%d2], %t;\n\
             mov.f64 %d3, 0d3FF8000000000000;\nst.local.f64 [%d2+8], %d3;\ncvta.local.u64 %d2, %d2;\n\
             mov.u64 %d4, format;\ncvta.global.u64 %d4, %d4;\n{\n.param .b64 a;\n.param .b64 b;\n.param .b32 r;\n\
             st.param.b64 [a], %d4;\nst.param.b64 [b], %d2;\ncall.uni (r), vprintf, (a, b);\n\
             ld.param.b32 %r1, [r];\n}\nst.global.u32 [%d1], %r1;\nsetp.lt.u32 %p1, %t, 2;\n@%p1 ret;\n\
             mov.u64 %d5, name;\n{\n.param .b64 a;\n.param .b64 b;\n.param .b32 c;\n.param .b64 d;\n.param .b64 e;\n\
             st.param.b64 [a], %d5;\nst.param.b64 [b], %d5;\nst.param.b32 [c], 42;\nst.param.b64 [d], %d5;\n\
             st.param.b64 [e], 1;\ncall.uni __assertfail, (a, b, c, d, e);\n}"
        )
        .replace(HEADER, "")
    );
    let mut run = Run::new(0);
    let report = run.launch(&text, 1, 2).unwrap();
    assert_eq!(report.printed, "t0 1.5\nt1 1.5\n");
    assert_eq!(run.y(2), [2, 2]);
    let message = run.launch(&text, 1, 3).unwrap_err().to_string();
    assert!(
        message.contains("assertion 'n>' failed in n>, n>:42") && message.contains("thread (2, 0, 0)"),
        "{message}"
    );
}

#[test]
fn a_loop_without_end_and_an_impossible_launch_are_stopped() {
    assert!(fault("LOOP: bra LOOP;", 32).contains("a loop that never ends?"));
    let mut run = Run::new(0);
    let message = run.launch(&kernel(""), 1, 1025).unwrap_err().to_string();
    assert!(message.starts_with("launch of test: a block of [1025, 1, 1] threads"), "{message}");
    let module = run.device.load_module(&kernel("")).unwrap();
    let function = module.function("test").unwrap();
    let arguments: [Argument; 2] = [run.x.into(), 7_u32.into()];
    let message = run.device.launch(&function, [1; 3], [1; 3], 0, &arguments).unwrap_err().to_string();
    assert!(message.contains("an argument of 4 bytes for py, which has 8"), "{message}");
}

#[test]
fn bytes_sectors_and_instructions_are_counted() {
    let mut run = Run::new(0);
    let text = kernel("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d2];\nst.global.u32 [%d1], %r1;")
        .replace("mad.wide.u32 %d0", "mad.wide.u32 %d2, %t, 16, %x;\nmad.wide.u32 %d0");
    let report = run.launch(&text, 2, 64).unwrap();
    assert_eq!((report.global_read_bytes, report.global_read_sectors), (2 * 64 * 16, 2 * 64 / 2));
    assert_eq!((report.global_written_bytes, report.global_written_sectors), (512, 16));
    assert_eq!(report.instructions["ld.global.v4.u32"], 4);
}
