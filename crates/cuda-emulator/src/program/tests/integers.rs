//! Integers, bits and comparisons.

use super::{check, word};

#[test]
fn integer_arithmetic() {
    check("add.s32 r, a, b;", "ww", b'w', word(|a, b, _| a.wrapping_add(b)));
    check("sub.s64 r, a, b;", "dd", b'd', |a, b, _| a.wrapping_sub(b));
    check("add.s16 r, a, b;", "hh", b'h', |a, b, _| u64::from((a as u16).wrapping_add(b as u16)));
    check("add.sat.s32 r, a, b;", "ww", b'w', word(|a, b, _| (a as i32).saturating_add(b as i32) as u32));
    check("mul.lo.s32 r, a, b;", "ww", b'w', word(|a, b, _| a.wrapping_mul(b)));
    check("mul.hi.u32 r, a, b;", "ww", b'w', word(|a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32));
    check("mul.hi.s64 r, a, b;", "dd", b'd', |a, b, _| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    });
    check("mul.wide.s32 r, a, b;", "ww", b'd', |a, b, _| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    check("mad.wide.u32 r, a, b, c;", "wwd", b'd', |a, b, c| {
        ((a & 0xffff_ffff) * (b & 0xffff_ffff)).wrapping_add(c)
    });
    check("mad.lo.s32 r, a, b, c;", "www", b'w', word(|a, b, c| a.wrapping_mul(b).wrapping_add(c)));
    check(
        "div.s32 r, a, b;",
        "ww",
        b'w',
        word(|a, b, _| match b {
            0 => u32::MAX,
            _ => (a as i32).wrapping_div(b as i32) as u32,
        }),
    );
    check("rem.u64 r, a, b;", "dd", b'd', |a, b, _| a.checked_rem(b).unwrap_or(u64::MAX));
    check("min.s32 r, a, b;", "ww", b'w', word(|a, b, _| (a as i32).min(b as i32) as u32));
    check("max.u64 r, a, b;", "dd", b'd', |a, b, _| a.max(b));
    check("abs.s32 r, a;", "w", b'w', word(|a, _, _| (a as i32).unsigned_abs()));
    check("neg.s64 r, a;", "d", b'd', |a, _, _| a.wrapping_neg());
    check("sad.u32 r, a, b, c;", "www", b'w', word(|a, b, c| c.wrapping_add(a.abs_diff(b))));
    check(
        "dp4a.s32.u32 r, a, b, c;",
        "www",
        b'w',
        word(|a, b, c| {
            (0..4).fold(c, |sum, at| {
                let (x, y) = ((a >> (8 * at)) as i8, (b >> (8 * at)) as u8);
                sum.wrapping_add((i32::from(x) * i32::from(y)) as u32)
            })
        }),
    );
}

#[test]
fn carries_make_wider_numbers() {
    let code = ".reg .b32 al, ah, bl, bh, rl, rh;\nmov.b64 {al, ah}, a;\nmov.b64 {bl, bh}, b;\n";
    let end = "\nmov.b64 r, {rl, rh};";
    let with = |middle: &str| format!("{code}{middle}{end}");
    check(&with("add.cc.u32 rl, al, bl;\naddc.u32 rh, ah, bh;"), "dd", b'd', |a, b, _| a.wrapping_add(b));
    check(&with("sub.cc.u32 rl, al, bl;\nsubc.u32 rh, ah, bh;"), "dd", b'd', |a, b, _| a.wrapping_sub(b));
    let product = "mul.lo.u32 rl, al, bl;\nmul.hi.u32 rh, al, bl;\nmad.lo.cc.u32 rh, al, bh, rh;\n\
                   mad.lo.cc.u32 rh, ah, bl, rh;";
    check(&with(product), "dd", b'd', |a, b, _| a.wrapping_mul(b));
    let high = "mul.lo.u32 rl, al, bl;\nmad.lo.cc.u32 rl, al, bl, bh;\nmadc.hi.u32 rh, al, bl, 0;";
    check(&with(high), "dd", b'd', |a, b, _| (a & 0xffff_ffff) * (b & 0xffff_ffff) + (b >> 32));
}

#[test]
fn bits_and_moves() {
    check("and.b32 r, a, b;", "ww", b'w', word(|a, b, _| a & b));
    check("xor.b64 r, a, b;", "dd", b'd', |a, b, _| a ^ b);
    check("or.pred r, a, b;", "pp", b'p', |a, b, _| (a | b) & 1);
    check("not.b16 r, a;", "h", b'h', |a, _, _| u64::from(!(a as u16)));
    check("not.pred r, a;", "p", b'p', |a, _, _| !a & 1);
    check("shl.b32 r, a, b;", "ww", b'w', word(|a, b, _| a.checked_shl(b).unwrap_or(0)));
    check("shr.u64 r, a, b;", "dw", b'd', |a, b, _| a.checked_shr(b as u32).unwrap_or(0));
    check("shr.s32 r, a, b;", "ww", b'w', word(|a, b, _| ((a as i32) >> b.min(31)) as u32));
    check("selp.b64 r, a, b, c;", "ddp", b'd', |a, b, c| if c & 1 == 1 { a } else { b });
    check("popc.b64 r, a;", "d", b'w', |a, _, _| u64::from(a.count_ones()));
    check("clz.b32 r, a;", "w", b'w', word(|a, _, _| a.leading_zeros()));
    check("brev.b32 r, a;", "w", b'w', word(|a, _, _| a.reverse_bits()));
    check("bfind.u32 r, a;", "w", b'w', word(|a, _, _| a.checked_ilog2().unwrap_or(u32::MAX)));
    check(
        "bfind.shiftamt.s32 r, a;",
        "w",
        b'w',
        word(|a, _, _| {
            let magnitude = if (a as i32) < 0 { !a } else { a };
            if magnitude == 0 { u32::MAX } else { magnitude.leading_zeros() }
        }),
    );
    check("mov.b32 {_, r}, a;", "w", b'h', |a, _, _| a >> 16 & 0xffff);
    check("mov.b64 r, {a, b, b, a};", "hh", b'd', |a, b, _| {
        let (a, b) = (a & 0xffff, b & 0xffff);
        a | b << 16 | b << 32 | a << 48
    });
    check(
        "shf.l.wrap.b32 r, a, b, c;",
        "www",
        b'w',
        word(|a, b, c| ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32),
    );
    check(
        "shf.r.clamp.b32 r, a, b, c;",
        "www",
        b'w',
        word(|a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32),
    );
}

#[test]
fn bit_fields_permutations_and_truth_tables() {
    check(
        "bfe.u32 r, a, b, c;",
        "www",
        b'w',
        word(|a, b, c| {
            let (position, length) = (b & 0xff, c & 0xff);
            (0..length.min(32)).fold(0, |field, at| {
                let bit = if position + at < 32 { a >> (position + at) & 1 } else { 0 };
                field | bit << at
            })
        }),
    );
    check("bfe.s64 r, a, b, c;", "dww", b'd', |a, b, c| {
        let (position, length) = (b & 0xff, c & 0xff);
        let sign = if length == 0 { 0 } else { a >> (position + length - 1).min(63) & 1 };
        (0..64).fold(0, |field, at| {
            let bit = if at < length && position + at < 64 { a >> (position + at) & 1 } else { sign };
            field | bit << at
        })
    });
    check("bfi.b32 r, a, b, 5, 9;", "ww", b'w', word(|a, b, _| b & !(0x1ff << 5) | (a & 0x1ff) << 5));
    check("bfi.b64 r, a, b, 60, 9;", "dd", b'd', |a, b, _| b & !(0xf << 60) | (a & 0xf) << 60);
    check(
        "prmt.b32 r, a, b, c;",
        "www",
        b'w',
        word(|a, b, c| {
            let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
            u32::from_le_bytes(std::array::from_fn(|at| {
                let selector = c >> (4 * at);
                let byte = bytes[selector as usize & 7];
                if selector & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 }
            }))
        }),
    );
    check("prmt.b32.f4e r, a, b, 1;", "ww", b'w', word(|a, b, _| a >> 8 | b << 24));
    check("lop3.b32 r, a, b, c, 0x96;", "www", b'w', word(|a, b, c| a ^ b ^ c));
    check("lop3.b32 r, a, b, c, 0xE8;", "www", b'w', word(|a, b, c| a & b | a & c | b & c));
}

#[test]
fn comparisons() {
    check("setp.lt.s32 r, a, b;", "ww", b'p', |a, b, _| u64::from((a as i32) < b as i32));
    check("setp.hs.u64 r, a, b;", "dd", b'p', |a, b, _| u64::from(a >= b));
    check("setp.ne.b16 r, a, b;", "hh", b'p', |a, b, _| u64::from(a as u16 != b as u16));
    let pair = |a: u64, b: u64| (f32::from_bits(a as u32), f32::from_bits(b as u32));
    check("setp.gt.f32 r, a, b;", "ww", b'p', move |a, b, _| u64::from(pair(a, b).0 > pair(a, b).1));
    check("setp.leu.f32 r, a, b;", "ww", b'p', move |a, b, _| {
        let (a, b) = pair(a, b);
        u64::from(a <= b || a.is_nan() || b.is_nan())
    });
    check("setp.nan.f32 r, a, b;", "ww", b'p', move |a, b, _| {
        u64::from(pair(a, b).0.is_nan() || pair(a, b).1.is_nan())
    });
    check("setp.lt.and.u32 r, a, b, !c;", "wwp", b'p', |a, b, c| {
        u64::from((a as u32) < b as u32 && c & 1 == 0)
    });
    check(".reg .pred q;\nsetp.lt.u32 q|r, a, b;", "ww", b'p', |a, b, _| u64::from(a as u32 >= b as u32));
    check("set.gt.f32.f32 r, a, b;", "ww", b'w', move |a, b, _| {
        u64::from(if pair(a, b).0 > pair(a, b).1 { 1.0_f32.to_bits() } else { 0 })
    });
    check(
        "set.lt.u32.s32 r, a, b;",
        "ww",
        b'w',
        |a, b, _| if (a as i32) < b as i32 { 0xffff_ffff } else { 0 },
    );
    check("slct.b32.s32 r, a, b, c;", "www", b'w', word(|a, b, c| if c as i32 >= 0 { a } else { b }));
}
