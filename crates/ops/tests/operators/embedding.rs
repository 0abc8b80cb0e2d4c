//! Looking up rows and adding their gradients.

use tessera_ops::{Queue, embedding};

use crate::oracle;
use crate::support::{Seeded, assert_close, assert_gradient, inner_product, unwritten, view, view_mut};

fn forward(tokens: &[u32], vocabulary: usize, width: usize, weight: &[f64]) -> Vec<f64> {
    let mut x = unwritten(tokens.len() * width);
    let weight = view(weight, [vocabulary, width]);
    let x_view = view_mut(&mut x, [tokens.len(), width]);
    embedding::forward(&Queue::cpu(), view(tokens, [tokens.len()]), weight, x_view).unwrap();
    x
}

#[test]
fn agrees_with_candle_and_finite_differences() {
    let mut seeded = Seeded::new(1);
    for _ in 0..40 {
        let (count, vocabulary, width) = (seeded.extent(60), seeded.extent(20), seeded.extent(150));
        let tokens = seeded.ids(count, vocabulary);
        let weight = seeded.values::<f64>(vocabulary * width);
        let dx = seeded.values(count * width);
        let variable = oracle::variable(&weight, (vocabulary, width));
        let x = variable.index_select(&oracle::constant(&tokens, count), 0).unwrap();
        assert_eq!(forward(&tokens, vocabulary, width, &weight), oracle::elements::<f64>(&x));

        let before = seeded.values::<f64>(vocabulary * width);
        let mut dweight = before.clone();
        let tokens_view = view(&tokens, [count]);
        let dweight_view = view_mut(&mut dweight, [vocabulary, width]);
        embedding::backward(&Queue::cpu(), tokens_view, view(&dx, [count, width]), dweight_view).unwrap();
        let added: Vec<f64> = dweight.iter().zip(&before).map(|(after, before)| after - before).collect();
        assert_close("dW", &added, &oracle::gradients(&x, &dx, &[&variable])[0], 1e-14);
        assert_gradient("dW", &weight, &added, |weight| {
            inner_product(&forward(&tokens, vocabulary, width, weight), &dx)
        });
    }
}
