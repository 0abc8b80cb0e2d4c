//! y += b and db.

use tessera_ops::{Queue, bias};

use crate::oracle;
use crate::support::{Seeded, assert_close, assert_gradient, inner_product, view, view_mut};

fn forward(rows: usize, width: usize, y: &[f64], b: &[f64]) -> Vec<f64> {
    let mut y = y.to_vec();
    bias::forward(&Queue::cpu(), view(b, [width]), view_mut(&mut y, [rows, width])).unwrap();
    y
}

#[test]
fn agrees_with_candle_and_finite_differences() {
    let mut seeded = Seeded::new(1);
    for _ in 0..40 {
        let (rows, width) = (seeded.extent(40), seeded.extent(150));
        let (y, b) = (seeded.values(rows * width), seeded.values(width));
        let (dy, before) = (seeded.values(rows * width), seeded.values::<f64>(width));
        let variable = oracle::variable(&b, width);
        let sum = oracle::constant(&y, (rows, width)).broadcast_add(&variable).unwrap();
        assert_close("y", &forward(rows, width, &y, &b), &oracle::elements(&sum), 1e-15);

        let mut db = vec![0.0; width];
        bias::backward(&Queue::cpu(), view(&dy, [rows, width]), view_mut(&mut db, [width])).unwrap();
        assert_close("db", &db, &oracle::gradients(&sum, &dy, &[&variable])[0], 1e-14);
        assert_gradient("db", &b, &db, |b| inner_product(&forward(rows, width, &y, b), &dy));

        let mut added = before.clone();
        bias::backward(&Queue::cpu(), view(&dy, [rows, width]), view_mut(&mut added, [width])).unwrap();
        let expected: Vec<f64> = before.iter().zip(&db).map(|(before, db)| before + db).collect();
        assert_close("db, added", &added, &expected, 1e-14);
    }
}
