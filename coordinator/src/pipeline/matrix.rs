//! One step to its instances: one for each combination of its matrix's values.

use indexmap::IndexMap;

use super::bounds::{MATRIX_NAMES_MAX, MATRIX_VALUE_CHARS_MAX, STEPS_MAX};
use super::mistake::{Mistake, Mistakes};
use super::raw::{RawStep, Scalar};
use super::tree::Node;

/// The values that one instance has, in the order in which the file names them. Empty without a matrix.
pub(super) type Values = IndexMap<String, String>;

/// Every combination, the last name changing fastest. `None` with a mistake noted.
pub(super) fn expand(step: &RawStep, node: &Node, mistakes: &mut Mistakes) -> Option<Vec<Values>> {
    let Some(matrix) = &step.matrix else {
        return Some(vec![Values::new()]);
    };
    let place = node.get("matrix");
    check(matrix, place?, mistakes)?;
    let count = matrix.values().try_fold(1_usize, |count, values| count.checked_mul(values.len()));
    if count.is_none_or(|count| count > STEPS_MAX) {
        let product = matrix.values().map(|values| values.len().to_string()).collect::<Vec<_>>().join(" × ");
        let message =
            format!("the matrix of `{}` has too many combinations: {product}, at most {STEPS_MAX}", step.name);
        mistakes.note(Mistake::new(message).at(node.place("matrix"), "of these"));
        return None;
    }
    let mut instances = vec![Values::new()];
    for (key, values) in matrix {
        let with = |instance: &Values, value: &Scalar| {
            let mut instance = instance.clone();
            instance.insert(key.clone(), value.0.clone());
            instance
        };
        instances = instances.iter().flat_map(|instance| values.iter().map(|value| with(instance, value))).collect();
    }
    Some(instances)
}

/// `test[cc=gcc,opt=2]`.
pub(super) fn instance_name(step: &str, values: &Values) -> String {
    if values.is_empty() {
        return step.to_owned();
    }
    let values: Vec<_> = values.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{step}[{}]", values.join(","))
}

fn check(matrix: &IndexMap<String, Vec<Scalar>>, place: &Node, mistakes: &mut Mistakes) -> Option<()> {
    let mut fine = true;
    let mut note = |mistake| {
        fine = false;
        mistakes.note(mistake);
    };
    if matrix.is_empty() {
        note(Mistake::new("the matrix is empty").at(place.head(), "no names here").help("as in `cc: [gcc, clang]`"));
    }
    if matrix.len() > MATRIX_NAMES_MAX {
        let message = format!("the matrix has {} names, at most {MATRIX_NAMES_MAX}", matrix.len());
        note(Mistake::new(message).at(place.head(), "of these"));
        return None;
    }
    for (key, values) in matrix {
        let entry = place.entry(key)?;
        let is_name = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && key.len() <= 100;
        if !is_name {
            let message = format!("`{key}` cannot be a name of a matrix: letters, digits and `_`, a letter first");
            note(Mistake::new(message).at(entry.key_span.clone(), "as `matrix.NAME` it could not be written"));
        }
        if values.is_empty() {
            let mistake = Mistake::new(format!("`{key}` has no values, so that the step would never run"));
            note(mistake.at(entry.node.head(), "at least one value"));
        }
        let mut seen = IndexMap::new();
        for (Scalar(value), node) in values.iter().zip(entry.node.items()) {
            if let Some(first) = seen.insert(value.as_str(), node.head()) {
                let mistake = Mistake::new(format!("`{key}` has the value `{value}` twice"));
                note(mistake.at(node.head(), "again").at(first, "first here"));
            }
            // It is part of the step's name, in which commas and brackets have their own meaning.
            let fits = value.chars().count() <= MATRIX_VALUE_CHARS_MAX
                && !value.contains(|c: char| c.is_control() || matches!(c, ',' | '[' | ']'));
            if !fits {
                let message = format!(
                    "a matrix value is part of the step's name: at most {MATRIX_VALUE_CHARS_MAX} characters, no `,`, \
                     `[`, `]` or line breaks"
                );
                note(
                    Mistake::new(message).at(node.head(), "not this").help("a short name here, the long text in `run`"),
                );
            }
        }
    }
    fine.then_some(())
}
