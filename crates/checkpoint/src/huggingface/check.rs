//! Whether a source holds exactly the tensors of a model. All differences are reported at once: one at a time would
//! hide that a checkpoint simply belongs to another model.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use crate::{TensorInfo, WeightSource};

/// How many differences of each kind a message shows.
const SHOWN: usize = 10;

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
        "config.json ties {output} to {embedding} (tie_word_embeddings: true), but the two differ in the weights, \
         first at element {element}; set tie_word_embeddings: false in config.json (then they are trained apart), \
         or remove {output} from the weights"
    )]
    UntiedHead {
        /// The output projection's name.
        output: String,
        /// The embedding's.
        embedding: String,
        /// The first element that differs, in row-major order.
        element: usize,
    },
    /// The output projection or the embedding cannot be read.
    #[error("{output} cannot be compared with {embedding}, to which config.json ties it: {source}")]
    Unreadable {
        /// The output projection's name.
        output: String,
        /// The embedding's.
        embedding: String,
        /// Why it cannot be read.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The family has two spellings, and the source has tensors of both.
    #[error(
        "the weights mix two spellings of a model's experts: {original} is one of many tensors for each expert, {fused} holds \
         all experts of a block; use weights that have one spelling in all blocks, in all files of the folder"
    )]
    MixedSpellings {
        /// A tensor in the spelling of the family's repositories.
        original: String,
        /// A tensor in the other.
        fused: String,
    },
}

/// What a source may hold beside the tensors of a model.
#[derive(Debug, Clone, Copy)]
pub struct Extras<'a> {
    /// Where the output projection is tied to the embedding: a copy of it.
    pub tied: Option<TiedHead<'a>>,
    /// Ends of the names of buffers, such as the rotary frequencies that old checkpoints store.
    pub buffers: &'a [&'a str],
}

/// The names of an output projection and of the embedding that it is tied to.
#[derive(Debug, Clone, Copy)]
pub struct TiedHead<'a> {
    /// The output projection's.
    pub output: &'a str,
    /// The embedding's.
    pub embedding: &'a str,
}

/// Every way in which a source's tensors differ from the model's in name or shape, each kind in the order of the names.
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
        list(formatter, "missing:   ", &self.missing, |(name, shape)| format!("{name} {shape:?}"))?;
        list(formatter, "unexpected:", &self.unexpected, |(name, shape)| format!("{name} {shape:?}"))?;
        list(formatter, "shape:     ", &self.misshapen, |(name, expected, found)| {
            format!("{name} is {found:?}, the model has {expected:?}")
        })
    }
}

/// The first differences of a kind, a line each, and how many more there are.
fn list<T>(
    formatter: &mut fmt::Formatter<'_>,
    kind: &str,
    differences: &[T],
    shown: impl Fn(&T) -> String,
) -> fmt::Result {
    for difference in differences.iter().take(SHOWN) {
        write!(formatter, "\n  {kind} {}", shown(difference))?;
    }
    match differences.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(formatter, "\n  {kind} and {more} more"),
    }
}

impl Error for TensorDifferences {}

/// Checks that `source` holds the tensors `expected`, with their shapes, and no others.
///
/// Two kinds of `extras` pass: buffers, and an output projection beside a model that ties it to the embedding, if it has the
/// embedding's shape and values: it is a copy that some tools write.
///
/// # Errors
/// All differences in names and shapes at once; where there are none, an output projection that is no such copy.
pub fn check_tensors(
    source: &dyn WeightSource,
    expected: &[(String, Vec<usize>)],
    extras: Extras<'_>,
) -> Result<(), TensorMismatch> {
    let model: BTreeMap<&str, &Vec<usize>> =
        expected.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    let mut differences = TensorDifferences::default();
    for (&name, &shape) in &model {
        match source.tensors().get(name) {
            None => differences.missing.push((name.to_owned(), shape.clone())),
            Some(found) if found.shape != *shape => {
                differences.misshapen.push((name.to_owned(), shape.clone(), found.shape.clone()));
            }
            Some(_) => {}
        }
    }
    for (name, found) in source.tensors() {
        let is_copy = extras.tied.is_some_and(|tied| {
            name == tied.output && model.get(tied.embedding).is_some_and(|shape| **shape == found.shape)
        });
        let is_buffer = extras.buffers.iter().any(|end| name.ends_with(end));
        if !model.contains_key(name.as_str()) && !is_copy && !is_buffer {
            differences.unexpected.push((name.clone(), found.shape.clone()));
        }
    }
    if !differences.is_empty() {
        return Err(differences.into());
    }
    extras.tied.map_or(Ok(()), |tied| check_tied_head(source, tied))
}

/// Checks that the source's output projection, if it has one, equals its embedding, whose shape it has.
fn check_tied_head(source: &dyn WeightSource, tied: TiedHead<'_>) -> Result<(), TensorMismatch> {
    let names = || (tied.output.to_owned(), tied.embedding.to_owned());
    let elements = source.tensors().get(tied.output).map_or(0, TensorInfo::elements);
    let longest = elements.min(COMPARED_ELEMENTS);
    let (mut head, mut embedding) = (vec![0.0; longest], vec![0.0; longest]);
    for start in (0..elements).step_by(COMPARED_ELEMENTS) {
        let length = longest.min(elements - start);
        let (head, embedding) = (&mut head[..length], &mut embedding[..length]);
        source
            .read(tied.output, start, head)
            .and_then(|()| source.read(tied.embedding, start, embedding))
            .map_err(|source| {
                let (output, embedding) = names();
                TensorMismatch::Unreadable { output, embedding, source }
            })?;
        // By bits, since a NaN equals its copy.
        let differs = |(head, embedding): (&f32, &f32)| head.to_bits() != embedding.to_bits();
        if let Some(position) = head.iter().zip(embedding.iter()).position(differs) {
            let (output, embedding) = names();
            return Err(TensorMismatch::UntiedHead { output, embedding, element: start + position });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::StoredDType;

    const HEAD: &str = "lm_head.weight";
    const EMBEDDING: &str = "embedding.weight";
    const NO_EXTRAS: Extras<'_> = Extras { tied: None, buffers: &[] };
    const TIED: Extras<'_> = Extras {
        tied: Some(TiedHead { output: HEAD, embedding: EMBEDDING }),
        buffers: &["rotary_emb.inv_freq"],
    };

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
        let mismatch = check_tensors(&source, &expected(), NO_EXTRAS).unwrap_err();
        let text = mismatch.to_string();
        assert!(text.contains("1 missing, 2 unexpected, 1 of another shape"), "{text}");
        for part in ["model.norm.weight [4]", "a [1]", "b [2, 2]", "is [9, 4], the model has [8, 4]"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn the_first_ten_differences_of_a_kind_are_shown() {
        let numbered = |kind: &str, count: usize| -> Vec<String> {
            (0..count).map(|index| format!("{kind}{index:02}")).collect()
        };
        let (missing, unexpected, misshapen) = (numbered("m", 12), numbered("u", 10), numbered("s", 111));
        let expected: Vec<_> =
            missing.iter().chain(&misshapen).map(|name| (name.clone(), vec![2_usize])).collect();
        let held: Vec<(&str, &[usize])> =
            unexpected.iter().chain(&misshapen).map(|name| (name.as_str(), [3].as_slice())).collect();
        let text = check_tensors(&Tensors::new(&held), &expected, NO_EXTRAS).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 1 + 11 + 10 + 11, "{text}");
        for part in ["m09 [2]\n  missing:    and 2 more", "u09 [3]\n  shape:      s00", "and 101 more"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(text.contains("12 missing, 10 unexpected, 111 of another shape"), "{text}");
    }

    #[test]
    fn buffers_and_the_copy_of_a_tied_head_pass_but_another_shape_does_not() {
        let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
        let good: &[(&str, &[usize])] =
            &[(EMBEDDING, &[8, 4]), ("model.norm.weight", &[4]), (HEAD, &[8, 4]), (buffer, &[2])];
        check_tensors(&Tensors::new(good), &expected(), TIED).unwrap();
        check_tensors(&Tensors::new(good), &expected(), NO_EXTRAS).unwrap_err();
        let bad: &[(&str, &[usize])] = &[(EMBEDDING, &[8, 4]), ("model.norm.weight", &[4]), (HEAD, &[7, 4])];
        let mismatch = check_tensors(&Tensors::new(bad), &expected(), TIED).unwrap_err();
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
        check_tensors(&source, &tied, TIED).unwrap();
        let last = shape[0] * shape[1] - 1;
        for element in [0, COMPARED_ELEMENTS - 1, COMPARED_ELEMENTS, last] {
            source.changes = vec![(HEAD, element)];
            let text = check_tensors(&source, &tied, TIED).unwrap_err().to_string();
            for part in [HEAD, EMBEDDING, "tie_word_embeddings: false", &format!("element {element};")] {
                assert!(text.contains(part), "{part} is not in: {text}");
            }
        }
        let apart = [tied[0].clone(), (HEAD.to_owned(), shape)];
        check_tensors(&source, &apart, NO_EXTRAS).unwrap();
    }
}
