//! Whether a source holds exactly the tensors of a model. All differences are reported at once: one at a time would
//! hide that a checkpoint simply belongs to another model.

use std::collections::BTreeMap;
use std::fmt;

use crate::WeightSource;

/// The name of the output projection, and of the embedding that it may be tied to.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Every way in which a source's tensors differ from the model's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TensorMismatch {
    /// Tensors of the model that the source lacks, with their shapes.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Tensors of the source that the model does not have, with their shapes.
    pub unexpected: Vec<(String, Vec<usize>)>,
    /// Tensors of both: name, the model's shape, the source's shape.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl TensorMismatch {
    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for TensorMismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "the weights do not fit the model's config.json ({} missing, {} unexpected, {} of another \
             shape); use the weights and the config.json of one and the same model",
            self.missing.len(),
            self.unexpected.len(),
            self.misshapen.len()
        )?;
        for (name, shape) in &self.missing {
            write!(formatter, "\n  missing:    {name} {shape:?}")?;
        }
        for (name, shape) in &self.unexpected {
            write!(formatter, "\n  unexpected: {name} {shape:?}")?;
        }
        for (name, expected, found) in &self.misshapen {
            write!(formatter, "\n  shape:      {name} is {found:?}, the model has {expected:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TensorMismatch {}

/// Checks that `source` holds the tensors `expected`, with their shapes, and no others.
///
/// Two kinds of extra tensors pass: names that end in one of `ignorable` (old checkpoints store the rotary
/// embedding's `inv_freq` buffers), and an output projection beside a model that ties it to the embedding, if it has
/// the embedding's shape: it is a copy that some tools write.
///
/// # Errors
/// A [`TensorMismatch`] that lists all differences.
pub fn check_tensors(
    source: &dyn WeightSource,
    expected: &[(String, Vec<usize>)],
    ignorable: &[&str],
) -> Result<(), TensorMismatch> {
    let model: BTreeMap<&str, &Vec<usize>> =
        expected.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    let mut mismatch = TensorMismatch::default();
    for (name, shape) in expected {
        match source.tensors().get(name) {
            None => mismatch.missing.push((name.clone(), shape.clone())),
            Some(found) if found.shape != *shape => {
                mismatch.misshapen.push((name.clone(), shape.clone(), found.shape.clone()));
            }
            Some(_) => {}
        }
    }
    for (name, found) in source.tensors() {
        let copy_of_embedding =
            name == HEAD && model.get(EMBEDDING).is_some_and(|shape| **shape == found.shape);
        let ignored = ignorable.iter().any(|suffix| name.ends_with(suffix));
        if !model.contains_key(name.as_str()) && !copy_of_embedding && !ignored {
            mismatch.unexpected.push((name.clone(), found.shape.clone()));
        }
    }
    if mismatch.is_empty() { Ok(()) } else { Err(mismatch) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::error::Error;

    use super::*;
    use crate::{StoredDType, TensorInfo};

    struct Shapes(BTreeMap<String, TensorInfo>);

    impl Shapes {
        fn new(tensors: &[(&str, &[usize])]) -> Self {
            let info = |shape: &[usize]| TensorInfo { shape: shape.to_vec(), dtype: StoredDType::F32 };
            Self(tensors.iter().map(|(name, shape)| ((*name).to_owned(), info(shape))).collect())
        }
    }

    impl WeightSource for Shapes {
        fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
            &self.0
        }

        fn read(&self, _: &str, _: usize, _: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
            Err("has shapes only".into())
        }
    }

    fn expected() -> Vec<(String, Vec<usize>)> {
        vec![(EMBEDDING.to_owned(), vec![8, 4]), ("model.norm.weight".to_owned(), vec![4])]
    }

    #[test]
    fn all_differences_are_listed_in_one_error() {
        let source = Shapes::new(&[(EMBEDDING, &[9, 4]), ("a", &[1]), ("b", &[2, 2])]);
        let mismatch = check_tensors(&source, &expected(), &[]).unwrap_err();
        let text = mismatch.to_string();
        assert!(text.contains("1 missing, 2 unexpected, 1 of another shape"), "{text}");
        for part in ["model.norm.weight [4]", "a [1]", "b [2, 2]", "is [9, 4], the model has [8, 4]"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn buffers_and_the_copy_of_a_tied_head_pass_but_another_head_does_not() {
        let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
        let good: &[(&str, &[usize])] =
            &[(EMBEDDING, &[8, 4]), ("model.norm.weight", &[4]), (HEAD, &[8, 4]), (buffer, &[2])];
        check_tensors(&Shapes::new(good), &expected(), &["rotary_emb.inv_freq"]).unwrap();
        let bad: &[(&str, &[usize])] = &[(EMBEDDING, &[8, 4]), ("model.norm.weight", &[4]), (HEAD, &[7, 4])];
        let mismatch = check_tensors(&Shapes::new(bad), &expected(), &[]).unwrap_err();
        assert_eq!(mismatch.unexpected, [(HEAD.to_owned(), vec![7, 4])]);
    }
}
