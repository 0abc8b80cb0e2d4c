//! Whether a source holds exactly the tensors of a model. All differences are reported at once: one at a time would
//! hide that a checkpoint simply belongs to another model.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use crate::{TensorInfo, WeightSource};

/// The name of the output projection, and of the embedding that it may be tied to.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// How many elements of the output projection and the embedding are compared at a time (4 MiB of each).
const COMPARED_ELEMENTS: usize = 1 << 20;

/// The tensors of a source are not those of the model.
#[derive(Debug, thiserror::Error)]
pub enum TensorMismatch {
    /// Names or shapes differ.
    #[error(transparent)]
    Differences(#[from] TensorDifferences),
    /// The source has an output projection of its own, which the model would silently drop.
    #[error(
        "config.json ties {HEAD} to {EMBEDDING} (tie_word_embeddings: true), but the two differ in the weights, \
         first at element {element}; set tie_word_embeddings: false in config.json (then they are trained apart), \
         or remove {HEAD} from the weights"
    )]
    UntiedHead {
        /// The first element that differs, in row-major order.
        element: usize,
    },
    /// The output projection or the embedding cannot be read.
    #[error("{HEAD} cannot be compared with {EMBEDDING}, to which config.json ties it: {0}")]
    Unreadable(Box<dyn Error + Send + Sync>),
}

/// Every way in which a source's tensors differ from the model's in name or shape.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TensorDifferences {
    /// Tensors of the model that the source lacks, with their shapes.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Tensors of the source that the model does not have, with their shapes.
    pub unexpected: Vec<(String, Vec<usize>)>,
    /// Tensors of both: name, the model's shape, the source's shape.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl TensorDifferences {
    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for TensorDifferences {
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

impl Error for TensorDifferences {}

/// Checks that `source` holds the tensors `expected`, with their shapes, and no others.
///
/// Two kinds of extra tensors pass: names that end in one of `ignorable` (old checkpoints store the rotary
/// embedding's `inv_freq` buffers), and an output projection beside a model that ties it to the embedding, if it has
/// the embedding's shape and values: it is a copy that some tools write.
///
/// # Errors
/// All differences in names and shapes at once; where there are none, an output projection that is no such copy.
pub fn check_tensors(
    source: &dyn WeightSource,
    expected: &[(String, Vec<usize>)],
    ignorable: &[&str],
) -> Result<(), TensorMismatch> {
    let model: BTreeMap<&str, &Vec<usize>> =
        expected.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    let mut differences = TensorDifferences::default();
    for (name, shape) in expected {
        match source.tensors().get(name) {
            None => differences.missing.push((name.clone(), shape.clone())),
            Some(found) if found.shape != *shape => {
                differences.misshapen.push((name.clone(), shape.clone(), found.shape.clone()));
            }
            Some(_) => {}
        }
    }
    for (name, found) in source.tensors() {
        let copy_of_embedding =
            name == HEAD && model.get(EMBEDDING).is_some_and(|shape| **shape == found.shape);
        let ignored = ignorable.iter().any(|suffix| name.ends_with(suffix));
        if !model.contains_key(name.as_str()) && !copy_of_embedding && !ignored {
            differences.unexpected.push((name.clone(), found.shape.clone()));
        }
    }
    if !differences.is_empty() {
        return Err(differences.into());
    }
    if model.contains_key(EMBEDDING) && !model.contains_key(HEAD) { check_tied_head(source) } else { Ok(()) }
}

/// Checks that the source's output projection, if it has one, equals its embedding, whose shape it has.
fn check_tied_head(source: &dyn WeightSource) -> Result<(), TensorMismatch> {
    let elements = source.tensors().get(HEAD).map_or(0, TensorInfo::elements);
    let longest = elements.min(COMPARED_ELEMENTS);
    let (mut head, mut embedding) = (vec![0.0; longest], vec![0.0; longest]);
    for start in (0..elements).step_by(COMPARED_ELEMENTS) {
        let length = longest.min(elements - start);
        let (head, embedding) = (&mut head[..length], &mut embedding[..length]);
        source
            .read(HEAD, start, head)
            .and_then(|()| source.read(EMBEDDING, start, embedding))
            .map_err(TensorMismatch::Unreadable)?;
        // By bits, since a NaN equals its copy.
        let differs = |(head, embedding): (&f32, &f32)| head.to_bits() != embedding.to_bits();
        if let Some(position) = head.iter().zip(embedding.iter()).position(differs) {
            return Err(TensorMismatch::UntiedHead { element: start + position });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::StoredDType;

    /// Tensors whose elements are their positions, with `changes` (name, element) moved by one.
    struct Tensors {
        shapes: BTreeMap<String, TensorInfo>,
        changes: Vec<(&'static str, usize)>,
    }

    impl Tensors {
        fn new(tensors: &[(&str, &[usize])]) -> Self {
            let info = |shape: &[usize]| TensorInfo { shape: shape.to_vec(), dtype: StoredDType::F32 };
            let shapes = tensors.iter().map(|(name, shape)| ((*name).to_owned(), info(shape))).collect();
            Self { shapes, changes: Vec::new() }
        }
    }

    impl WeightSource for Tensors {
        fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
            &self.shapes
        }

        fn read(
            &self,
            name: &str,
            start: usize,
            out: &mut [f32],
        ) -> Result<(), Box<dyn Error + Send + Sync>> {
            if start + out.len() > self.shapes[name].elements() {
                return Err("past the end".into());
            }
            for (element, value) in (start..).zip(out) {
                *value = element as f32 + f32::from(u8::from(self.changes.contains(&(name, element))));
            }
            Ok(())
        }
    }

    fn expected() -> Vec<(String, Vec<usize>)> {
        vec![(EMBEDDING.to_owned(), vec![8, 4]), ("model.norm.weight".to_owned(), vec![4])]
    }

    #[test]
    fn all_differences_are_listed_in_one_error() {
        let source = Tensors::new(&[(EMBEDDING, &[9, 4]), ("a", &[1]), ("b", &[2, 2])]);
        let mismatch = check_tensors(&source, &expected(), &[]).unwrap_err();
        let text = mismatch.to_string();
        assert!(text.contains("1 missing, 2 unexpected, 1 of another shape"), "{text}");
        for part in ["model.norm.weight [4]", "a [1]", "b [2, 2]", "is [9, 4], the model has [8, 4]"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn buffers_and_the_copy_of_a_tied_head_pass_but_another_shape_does_not() {
        let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
        let good: &[(&str, &[usize])] =
            &[(EMBEDDING, &[8, 4]), ("model.norm.weight", &[4]), (HEAD, &[8, 4]), (buffer, &[2])];
        check_tensors(&Tensors::new(good), &expected(), &["rotary_emb.inv_freq"]).unwrap();
        let bad: &[(&str, &[usize])] = &[(EMBEDDING, &[8, 4]), ("model.norm.weight", &[4]), (HEAD, &[7, 4])];
        let mismatch = check_tensors(&Tensors::new(bad), &expected(), &[]).unwrap_err();
        assert!(
            matches!(&mismatch, TensorMismatch::Differences(differences)
                if differences.unexpected == [(HEAD.to_owned(), vec![7, 4])]),
            "{mismatch}"
        );
    }

    #[test]
    fn a_tied_head_that_differs_in_any_piece_is_refused() {
        let shape = vec![3, COMPARED_ELEMENTS / 2 + 5];
        let mut source = Tensors::new(&[(EMBEDDING, &shape), (HEAD, &shape)]);
        let tied = [(EMBEDDING.to_owned(), shape.clone())];
        check_tensors(&source, &tied, &[]).unwrap();
        let last = shape[0] * shape[1] - 1;
        for element in [0, COMPARED_ELEMENTS - 1, COMPARED_ELEMENTS, last] {
            source.changes = vec![(HEAD, element)];
            let text = check_tensors(&source, &tied, &[]).unwrap_err().to_string();
            for part in [HEAD, EMBEDDING, "tie_word_embeddings: false", &format!("element {element};")] {
                assert!(text.contains(part), "{part} is not in: {text}");
            }
        }
        let apart = [tied[0].clone(), (HEAD.to_owned(), shape)];
        check_tensors(&source, &apart, &[]).unwrap();
    }
}
