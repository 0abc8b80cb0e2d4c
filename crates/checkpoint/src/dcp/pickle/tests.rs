//! Pickles that PyTorch would write, and pickles that mean harm.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::dcp::ElementType;

fn everything() -> Value {
    let storage = StorageReference { key: "0".into(), dtype: ElementType::Bf16, elements: 6 };
    let tensor = TensorReference { storage: Arc::new(storage), offset: 1, shape: vec![5], strides: vec![1] };
    let ints =
        [0, 255, 256, 65_535, 65_536, -1, -128, -129, i128::from(i32::MIN), 1 << 31, 1 << 40, -(1 << 40)];
    let wide = [u64::MAX.into(), i64::MIN.into(), i128::MAX, i128::MIN];
    Value::dict([
        ("ints", Value::list(ints.into_iter().chain(wide).map(Value::Int))),
        ("floats", Value::tuple([1.5.into(), (-0.0).into(), f64::INFINITY.into()])),
        ("four", Value::tuple([true, false, true, false].map(Value::from))),
        ("texts", Value::list(["", "a", "a", "größer"].map(Value::from))),
        ("bytes", Value::Bytes([0, 200, 255].into())),
        ("ordered", Value::OrderedDict([(Value::Int(1), Value::None)].into())),
        ("delta", Value::TimeDelta(TimeDelta { days: -1, seconds: 86_399, microseconds: 5 })),
        ("tensor", Value::Tensor(Arc::new(tensor))),
        (
            "many",
            Value::list((0_usize..300).map(|index| Value::from(format!("text {}", index % 290).as_str()))),
        ),
    ])
}

#[test]
fn what_is_written_is_read() {
    for protocol in [Protocol::Two, Protocol::Four] {
        assert_eq!(read(&write(&everything(), protocol)).unwrap(), everything());
    }
}

#[test]
fn every_truncation_is_an_error() {
    let pickle = write(&everything(), Protocol::Two);
    for length in 0..pickle.len() {
        assert!(read(&pickle[..length]).is_err(), "{length} bytes");
    }
}

fn forbidden(pickle: &[u8]) -> (String, String) {
    match read(pickle).unwrap_err().fault {
        PickleFault::Forbidden { module, name } => (module, name),
        other => panic!("{other}"),
    }
}

#[test]
fn code_is_refused_by_name() {
    let system = ("os".to_owned(), "system".to_owned());
    assert_eq!(forbidden(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."), system);
    assert_eq!(forbidden(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R."), system);
    assert_eq!(forbidden(b"\x80\x02(X\x02\x00\x00\x00idios\nsystem\n."), system);
    // Names that lead from a listed module to anything else.
    assert_eq!(forbidden(b"\x80\x02cbuiltins\neval\n.").1, "eval");
    assert_eq!(forbidden(b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93.").1, "hub.load");
    assert_eq!(forbidden(b"\x80\x02ctorch\nload\n.").1, "load");
    assert_eq!(forbidden(b"\x80\x02c_codecs\ndecode\n.").1, "decode");
    let text = read(b"\x80\x02cos\nsystem\n.").unwrap_err().to_string();
    assert!(text.contains("os.system") && text.contains("byte"), "{text}");
}

#[test]
fn what_only_a_crafted_pickle_does_is_an_error() {
    let crafted: [&[u8]; 12] = [
        b"\x80\x02R.",                                    // a call of nothing
        b"\x80\x02K\x01K\x01R.",                          // a call of a number
        b"\x80\x02h\x05.",                                // an empty memo slot
        b"\x80\x02(.",                                    // nothing left
        b"\x80\x02K\x01(0.",                              // popping through a mark
        b"\x80\x02]q\x00h\x00a.",                         // a list in itself
        b"\x80\x02}q\x00K\x01h\x00s.",                    // a dict in itself
        b"\x80\x02(X\x07\x00\x00\x00storage)Q.",          // a storage of nothing
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", // 2^64 characters
        b"\x80\x02\x82\x01.",                             // the extension registry
        b"\x80\x02P1\n.",                                 // a textual persistent id
        b"\x80\x01.",
    ];
    for pickle in crafted {
        assert!(read(pickle).is_err(), "{pickle:?}");
    }
}

#[test]
fn depth_is_limited_even_where_parts_are_shared() {
    let nested =
        |depth| [b"\x80\x02".as_slice(), &b"]".repeat(depth), &b"a".repeat(depth - 1), b"."].concat();
    assert!(read(&nested(90)).is_ok());
    for depth in [101, 1_000_000] {
        assert!(matches!(read(&nested(depth)).unwrap_err().fault, PickleFault::TooDeep));
    }
    // A list whose items each contain the one before: every item is met at depth 1.
    let mut chain = b"\x80\x02(]q\x00".to_vec();
    for _ in 0..200 {
        chain.extend(b"]h\x00aq\x00");
    }
    chain.extend(b"t.");
    assert!(matches!(read(&chain).unwrap_err().fault, PickleFault::TooDeep));
}

#[test]
fn shared_parts_do_not_multiply() {
    // Each list holds the one before twice: 2^90 leaves, if they were copied.
    let mut doubling = b"\x80\x02]q\x00".to_vec();
    for _ in 0..90 {
        doubling.extend(b"](h\x00h\x00eq\x00");
    }
    doubling.push(b'.');
    assert!(read(&doubling).is_ok());
    // One long text, encoded once per mention.
    let mut encoding = b"\x80\x02c_codecs\nencode\nq\x00X\x00\x00\x01\x00".to_vec();
    encoding.extend(vec![b'a'; 65_536]);
    encoding.extend(b"q\x01(");
    for _ in 0..1000 {
        encoding.extend(b"h\x00h\x01h\x01\x86R");
    }
    encoding.extend(b"t.");
    assert!(matches!(read(&encoding).unwrap_err().fault, PickleFault::TooLarge));
}
