//! Element by element.

use half::bf16;
use tessera_ops::{Buffer, DType, cast, fill};

use crate::support::{Random, Values, Variant, assert_on_gpu, download, stream, upload};

#[test]
fn what_is_copied_there_and_back_is_the_same() {
    let (queue, values) = (stream(), (0..1000_u32).collect::<Vec<_>>());
    let there = upload(&queue, &values);
    let mut beside = Buffer::on(&queue, there.len()).unwrap();
    assert!(download::<u32>(&queue, &beside).iter().all(|&value| value == 0));
    fill::copy(&queue, there.view(DType::U32), beside.view_mut(DType::U32)).unwrap();
    assert_eq!(download::<u32>(&queue, &beside), values);
    fill::zero(&queue, beside.view_mut(DType::U32).range(10, 20).unwrap()).unwrap();
    let zeros = download::<u32>(&queue, &beside).iter().filter(|&&value| value == 0).count();
    assert_eq!(zeros, 21);
}

fn add_case<V: Variant>(random: &mut Random) {
    let (queue, count) = (stream(), random.extent(3000));
    let (from, to) = (Values::<V>::random(random, count), Values::<V>::random(random, count));
    let (from_on, mut to_on) = (upload(&queue, &from.rounded), upload(&queue, &to.rounded));
    fill::add(&queue, from_on.view(V::DTYPE), to_on.view_mut(V::DTYPE)).unwrap();
    let expected: Vec<f64> = from.exact.iter().zip(&to.exact).map(|(a, b)| a + b).collect();
    assert_on_gpu::<V>(&queue, "sum", &to_on, &expected);
}

#[test]
fn addition_follows_the_cpu() {
    let mut random = Random::new(3);
    for _ in 0..6 {
        add_case::<f32>(&mut random);
        add_case::<bf16>(&mut random);
    }
}

#[test]
fn casts_round_as_the_cpu_does() {
    let (queue, mut random) = (stream(), Random::new(4));
    for _ in 0..6 {
        let count = random.extent(2000);
        let values = Values::<f32>::random(&mut random, count).rounded;
        let wide = upload(&queue, &values);
        let mut narrow = Buffer::on(&queue, values.len() * 2).unwrap();
        cast::forward(&queue, wide.view(DType::F32), narrow.view_mut(DType::BF16)).unwrap();
        let expected: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        assert_eq!(download::<bf16>(&queue, &narrow), expected);
        let mut again = Buffer::on(&queue, values.len() * 4).unwrap();
        cast::forward(&queue, narrow.view(DType::BF16), again.view_mut(DType::F32)).unwrap();
        let widened: Vec<f32> = expected.iter().map(|&value| value.to_f32()).collect();
        assert_eq!(download::<f32>(&queue, &again), widened);
    }
}
