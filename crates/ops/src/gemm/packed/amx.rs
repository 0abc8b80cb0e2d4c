//! The micro-kernel of AMX: 32×32 elements in four tile registers, from two strips of either side.
//!
//! `tdpbf16ps` multiplies a tile of sixteen lines by 32 elements of the inner dimension with another in sixteen cycles. Rust has
//! no stable intrinsics for it, hence the assembly, one block for a whole product, so that no tile has to outlive a block.

use std::arch::asm;
use std::sync::OnceLock;

use super::kernel::Block;
use super::pack::{LINES, Tile};

/// Rows and columns of what one call computes.
const SIDE: usize = 2 * LINES;

/// Whether the processor has AMX for bf16, and the operating system lets this process use it.
pub(super) fn is_available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        let leaves = std::arch::x86_64::__cpuid(0).eax;
        let found = leaves >= 7 && {
            let edx = std::arch::x86_64::__cpuid_count(7, 0).edx;
            edx & AMX_BF16 != 0 && edx & AMX_TILE != 0
        };
        found && super::kernel::has_avx512() && is_permitted()
    })
}

/// Asks for the state of the tile registers, which threads have only where their process has asked.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of this process; it clobbers rcx and r11.
    #[allow(unsafe_code)]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The shape of the tile registers: all eight have sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Runs `body` on a thread whose tile registers have their shape. They are let go afterwards, so that the system need not save
/// them when it switches threads.
///
/// # Safety
/// [`is_available`], and `body` does not nest.
#[allow(unsafe_code)]
pub(super) unsafe fn with_tiles(body: impl FnOnce()) {
    // SAFETY: the processor has the instruction, and reads 64 bytes of a constant.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
    body();
    // SAFETY: as above.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Computes a block of up to two strips by two.
///
/// # Safety
/// Inside [`with_tiles`], and what [`Block`] asks for.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(block: &Block<'_>) {
    let second = |strips: &[Tile], lines: usize| {
        if lines > LINES { strips[block.strip..].as_ptr() } else { strips.as_ptr() }
    };
    let left = [block.left.as_ptr(), second(block.left, block.rows)];
    let right = [block.right.as_ptr(), second(block.right, block.columns)];
    let factors = Factors { left, right, tiles: block.tiles };
    if block.rows == SIDE && block.columns == SIDE && block.scale == 1.0 {
        // SAFETY: the tiles are there by the caller's promise, and so are 32 rows of 32 elements.
        return unsafe { factors.multiply(block.c, block.stride, block.adds) };
    }
    let mut sums = [0.0; SIDE * SIDE];
    // SAFETY: as above, with the rows of `sums`.
    unsafe {
        factors.multiply(sums.as_mut_ptr(), SIDE, false);
        block.store(&sums, SIDE);
    }
}

/// Where two strips of either side begin, a strip that is missing being the first again.
struct Factors {
    left: [*const Tile; 2],
    right: [*const Tile; 2],
    tiles: usize,
}

/// The loop over the inner dimension: tiles 4 and 5 from the left, 6 and 7 from the right, sums in 0 to 3.
macro_rules! multiply {
    ($start:literal, $factors:expr, $c:expr, $stride:expr) => {{
        let Factors { left: [left_0, left_1], right: [right_0, right_1], tiles } = $factors;
        asm!(
            $start,
            "2:",
            "tileloadd tmm4, [{left_0} + {row}*1]",
            "tileloadd tmm6, [{right_0} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right_1} + {row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{left_1} + {row}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left_0}, 1024",
            "add {left_1}, 1024",
            "add {right_0}, 1024",
            "add {right_1}, 1024",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{c_0} + {stride}*1], tmm0",
            "tilestored [{c_0} + {stride}*1 + 64], tmm1",
            "tilestored [{c_1} + {stride}*1], tmm2",
            "tilestored [{c_1} + {stride}*1 + 64], tmm3",
            left_0 = inout(reg) left_0 => _,
            left_1 = inout(reg) left_1 => _,
            right_0 = inout(reg) right_0 => _,
            right_1 = inout(reg) right_1 => _,
            tiles = inout(reg) tiles => _,
            row = in(reg) 64_usize,
            c_0 = in(reg) $c,
            c_1 = in(reg) $c.add(LINES * $stride),
            stride = in(reg) 4 * $stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }};
}

impl Factors {
    /// Writes the 32×32 products at `c`, whose rows are `stride` apart, or adds them to what is there.
    ///
    /// # Safety
    /// Inside [`with_tiles`]; strips have as many tiles, at least one, and `c` has 32 rows of 32 elements.
    #[allow(unsafe_code)]
    #[inline]
    unsafe fn multiply(self, c: *mut f32, stride: usize, adds: bool) {
        // SAFETY: the instructions read the tiles and write the rows that the caller speaks of.
        unsafe {
            if adds {
                multiply!(
                    "tileloadd tmm0, [{c_0} + {stride}*1]
                     tileloadd tmm1, [{c_0} + {stride}*1 + 64]
                     tileloadd tmm2, [{c_1} + {stride}*1]
                     tileloadd tmm3, [{c_1} + {stride}*1 + 64]",
                    self,
                    c,
                    stride
                );
            } else {
                multiply!("tilezero tmm0; tilezero tmm1; tilezero tmm2; tilezero tmm3", self, c, stride);
            }
        }
    }
}
