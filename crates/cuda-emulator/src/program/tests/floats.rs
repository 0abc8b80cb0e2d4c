//! Floating-point arithmetic and conversions.

use half::{bf16, f16};

use super::{check, check_as, double, float};

#[test]
fn f32_arithmetic() {
    let check = |code: &str, registers: &str, function: fn(f32, f32, f32) -> f32| {
        check_as(code, registers, b'w', 32, float(function));
    };
    check("add.f32 r, a, b;", "ww", |a, b, _| a + b);
    check("sub.rn.f32 r, a, b;", "ww", |a, b, _| a - b);
    check("mul.f32 r, a, b;", "ww", |a, b, _| a * b);
    check("div.rn.f32 r, a, b;", "ww", |a, b, _| a / b);
    check("fma.rn.f32 r, a, b, c;", "www", f32::mul_add);
    check("sqrt.rn.f32 r, a;", "w", |a, _, _| a.sqrt());
    check("neg.f32 r, a;", "w", |a, _, _| -a);
    check("abs.f32 r, a;", "w", |a, _, _| a.abs());
    check("copysign.f32 r, a, b;", "ww", |a, b, _| b.copysign(a));
    check("min.f32 r, a, b;", "ww", |a, b, _| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    });
    check("max.NaN.f32 r, a, b;", "ww", |a, b, _| match a.is_nan() || b.is_nan() {
        true => f32::NAN,
        false if a == b => {
            if a.is_sign_positive() {
                a
            } else {
                b
            }
        }
        false => {
            if a > b {
                a
            } else {
                b
            }
        }
    });
    check(
        "add.sat.f32 r, a, b;",
        "ww",
        |a, b, _| if (a + b).is_nan() { 0.0 } else { (a + b).clamp(0.0, 1.0) + 0.0 },
    );
    check("ex2.approx.f32 r, a;", "w", |a, _, _| f64::from(a).exp2() as f32);
    check("lg2.approx.f32 r, a;", "w", |a, _, _| f64::from(a).log2() as f32);
    check("rsqrt.approx.f32 r, a;", "w", |a, _, _| (1.0 / f64::from(a).sqrt()) as f32);
    check("mul.ftz.f32 r, a, b;", "ww", |a, b, _| {
        let flush = |value: f32| if value.is_subnormal() { 0.0_f32.copysign(value) } else { value };
        flush(flush(a) * flush(b))
    });
}

/// Directed rounding: the neighbours of the exact value enclose it.
#[test]
fn f32_directed_rounding() {
    let toward = |exact: f64, up: bool| {
        let nearest = exact as f32;
        match (f64::from(nearest).total_cmp(&exact), up) {
            _ if !exact.is_finite() || exact == f64::from(nearest) => nearest,
            (std::cmp::Ordering::Less, true) => nearest.next_up(),
            (std::cmp::Ordering::Greater, false) => nearest.next_down(),
            _ => nearest,
        }
    };
    let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
    check_as("mul.rp.f32 r, a, b;", "ww", b'w', 32, float(move |a, b, _| toward(product(a, b), true)));
    check_as("mul.rm.f32 r, a, b;", "ww", b'w', 32, float(move |a, b, _| toward(product(a, b), false)));
    check_as(
        "mul.rz.f32 r, a, b;",
        "ww",
        b'w',
        32,
        float(move |a, b, _| toward(product(a, b), product(a, b) < 0.0)),
    );
}

#[test]
fn f64_arithmetic() {
    let check = |code: &str, registers: &str, function: fn(f64, f64, f64) -> f64| {
        check_as(code, registers, b'd', 64, double(function));
    };
    check("add.f64 r, a, b;", "dd", |a, b, _| a + b);
    check("fma.rn.f64 r, a, b, c;", "ddd", f64::mul_add);
    check("div.rn.f64 r, a, b;", "dd", |a, b, _| a / b);
    check("sqrt.rn.f64 r, a;", "d", |a, _, _| a.sqrt());
    check("rcp.rn.f64 r, a;", "d", |a, _, _| 1.0 / a);
    check("max.f64 r, a, b;", "dd", |a, b, _| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_positive() {
                a
            } else {
                b
            }
        }
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    });
}

#[test]
fn half_arithmetic() {
    let brain = |bits: u64| f64::from(f32::from_bits((bits as u32 & 0xffff) << 16));
    let narrow = |value: f64| u64::from(bf16::from_f32(value as f32).to_bits());
    // By way of an f32 whose last bit says that something was cut off.
    let narrow_f64 = |value: f64| {
        let near = value as f32;
        let cut = f32::from_bits(near.to_bits() - u32::from(f64::from(near).abs() > value.abs()));
        let odd = u32::from(near.is_finite() && f64::from(near) != value);
        narrow(f64::from(f32::from_bits(cut.to_bits() | odd)))
    };
    check_as("fma.rn.bf16 r, a, b, c;", "hhh", b'h', 17, |a, b, c| {
        let (product, third) = (brain(a) * brain(b), brain(c));
        let sum = product + third;
        // What f64 lost of the smaller number breaks a tie.
        let (large, small) = if product.abs() > third.abs() { (product, third) } else { (third, product) };
        let rest = small - (sum - large);
        narrow_f64(if rest > 0.0 {
            sum.next_up()
        } else if rest < 0.0 {
            sum.next_down()
        } else {
            sum
        })
    });
    check_as("mul.bf16 r, a, b;", "hh", b'h', 17, |a, b, _| narrow(brain(a) * brain(b)));
    check("neg.bf16 r, a;", "h", b'h', |a, _, _| (a & 0xffff) ^ 0x8000);
    check("abs.bf16x2 r, a;", "w", b'w', |a, _, _| a & 0x7fff_7fff);
    let half = |bits: u64| f64::from(f16::from_bits(bits as u16));
    let round = |value: f64| u64::from(f16::from_f64_const(value).to_bits());
    check_as("add.f16 r, a, b;", "hh", b'h', 16, |a, b, _| round(half(a) + half(b)));
    check_as("mul.f16 r, a, b;", "hh", b'h', 16, |a, b, _| round(half(a) * half(b)));
    check_as("max.f16 r, a, b;", "hh", b'h', 16, |a, b, _| {
        let (x, y) = (half(a), half(b));
        let first = y.is_nan() || x > y || x == y && x.is_sign_positive();
        (if first { a } else { b }) & 0xffff
    });
    check("mul.f16x2 r, a, b;\nand.b32 r, r, 0x7c007c00;", "ww", b'w', |a, b, _| {
        let low = round(half(a) * half(b)) & 0x7c00;
        low | (round(half(a >> 16) * half(b >> 16)) & 0x7c00) << 16
    });
}

#[test]
fn conversions() {
    check("cvt.s64.s32 r, a;", "w", b'd', |a, _, _| i64::from(a as i32) as u64);
    check("cvt.u32.u64 r, a;", "d", b'w', |a, _, _| a & 0xffff_ffff);
    check("cvt.s32.s8 r, a;", "w", b'w', |a, _, _| u64::from(i32::from(a as i8) as u32));
    check("cvt.sat.u8.s32 r, a;", "w", b'w', |a, _, _| (a as i32).clamp(0, 255) as u64);
    check("cvt.rn.f32.s32 r, a;", "w", b'w', |a, _, _| u64::from((a as i32 as f32).to_bits()));
    check("cvt.rn.f32.u64 r, a;", "d", b'w', |a, _, _| u64::from((a as f32).to_bits()));
    check("cvt.rz.f32.s32 r, a;", "w", b'w', |a, _, _| {
        let (value, nearest) = (i64::from(a as i32), a as i32 as f32);
        let too_far = (nearest as i64).abs() > value.abs();
        u64::from(if too_far { nearest.to_bits() - 1 } else { nearest.to_bits() })
    });
    check("cvt.rn.f64.u64 r, a;", "d", b'd', |a, _, _| (a as f64).to_bits());
    let single = |bits: u64| f32::from_bits(bits as u32);
    check("cvt.rzi.s32.f32 r, a;", "w", b'w', move |a, _, _| u64::from(single(a) as i32 as u32));
    check("cvt.rni.u32.f32 r, a;", "w", b'w', move |a, _, _| u64::from(single(a).round_ties_even() as u32));
    check("cvt.rmi.s64.f32 r, a;", "w", b'd', move |a, _, _| single(a).floor() as i64 as u64);
    check_as("cvt.rpi.f32.f32 r, a;", "w", b'w', 32, move |a, _, _| u64::from(single(a).ceil().to_bits()));
    check_as("cvt.rn.bf16.f32 r, a;", "w", b'h', 17, move |a, _, _| {
        u64::from(bf16::from_f32(single(a)).to_bits())
    });
    check_as("cvt.rz.bf16.f32 r, a;", "w", b'h', 17, move |a, _, _| a >> 16 & 0xffff);
    check_as("cvt.rn.f16.f32 r, a;", "w", b'h', 16, move |a, _, _| {
        u64::from(f16::from_f32_const(single(a)).to_bits())
    });
    check_as("cvt.f32.f16 r, a;", "h", b'w', 32, |a, _, _| {
        u64::from(f16::from_bits(a as u16).to_f32_const().to_bits())
    });
    check_as("cvt.f32.bf16 r, a;", "h", b'w', 32, |a, _, _| (a & 0xffff) << 16);
    check_as("cvt.rn.f32.f64 r, a;", "d", b'w', 32, |a, _, _| {
        u64::from((f64::from_bits(a) as f32).to_bits())
    });
    check("cvt.rn.bf16x2.f32 r, a, b;\nand.b32 r, r, 0x7f807f80;", "ww", b'w', move |a, b, _| {
        let part = |bits| u64::from(bf16::from_f32(single(bits)).to_bits() & 0x7f80);
        part(a) << 16 | part(b)
    });
    check("cvt.sat.f32.f32 r, a;", "w", b'w', move |a, _, _| {
        u64::from((if single(a) > 0.0 { single(a).min(1.0) } else { 0.0 }).to_bits())
    });
    check_as("cvt.rna.tf32.f32 r, a;", "w", b'w', 32, move |a, _, _| match single(a).is_nan() {
        true => a & 0xffff_ffff,
        false => (a & 0xffff_ffff).wrapping_add(0x1000) & 0xffff_e000 & 0xffff_ffff,
    });
}
