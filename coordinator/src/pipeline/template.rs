//! `${{ matrix.cc }}` in a text. What stands between the braces is an expression of the Jinja family; everything
//! else of the text stays as it is: `$VAR`, `${VAR}`, `${#VAR}`, `{{ … }}` and `{% … %}` belong to the shell or to
//! other tools. That is why we look for the braces ourselves and evaluate expressions, not templates: an engine's own
//! template syntax would take comments (`{#`), blocks and a last newline away.

use indexmap::IndexMap;
use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};

use super::mistake::nearest;

const OPEN: &str = "${{";
const CLOSE: &str = "}}";

/// What is wrong with a text, and the part of it that is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TemplateError {
    pub(super) message: String,
    pub(super) part: String,
    pub(super) help: Option<String>,
}

/// Evaluates expressions. Making one costs more than using it.
pub(super) struct Templates {
    environment: Environment<'static>,
}

impl Templates {
    pub(super) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        Self { environment }
    }

    /// The text with every `${{ … }}` replaced, for one instance of a matrix.
    pub(super) fn render(&self, text: &str, matrix: &IndexMap<String, String>) -> Result<String, TemplateError> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(OPEN) {
            let after = &rest[start + OPEN.len()..];
            let Some(length) = end_of(after) else {
                let part = rest[start..].lines().next().unwrap_or_default().to_owned();
                let help = Some("`${{ \"${{\" }}` gives the three characters themselves".to_owned());
                return Err(TemplateError { message: format!("`{OPEN}` is never closed with `{CLOSE}`"), part, help });
            };
            out.push_str(&rest[..start]);
            let whole = &rest[start..start + OPEN.len() + length + CLOSE.len()];
            out.push_str(&self.evaluate(after[..length].trim(), whole, matrix)?);
            rest = &after[length + CLOSE.len()..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn evaluate(&self, code: &str, whole: &str, matrix: &IndexMap<String, String>) -> Result<String, TemplateError> {
        let error = |message: String, help| TemplateError { message, part: whole.to_owned(), help };
        let known = matrix.keys().map(|key| format!("matrix.{key}")).collect::<Vec<_>>();
        let expression = self.environment.compile_expression(code).map_err(|bad| {
            let detail = bad.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            error(format!("`{whole}` cannot be read{detail}"), None)
        })?;
        // Sorted, so that the same file always gives the same message.
        let mut used: Vec<_> = expression.undeclared_variables(true).into_iter().collect();
        used.sort();
        for name in used {
            if name != "matrix" && !known.contains(&name) {
                let help = match nearest(&name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if known.is_empty() => "the step has no matrix, and nothing else is known here".to_owned(),
                    None => format!("known are {}", known.join(", ")),
                };
                return Err(error(format!("`{name}` is not known here"), Some(help)));
            }
        }
        let values = matrix.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let context = minijinja::Value::from_pairs([("matrix", minijinja::Value::from_pairs(values))]);
        let value = expression.eval(context).map_err(|bad| {
            let message = match (bad.kind(), bad.detail()) {
                (ErrorKind::UndefinedError, None) => format!("`{whole}` uses a value that is not there"),
                (_, Some(detail)) => format!("`{whole}` fails: {detail}"),
                (kind, None) => format!("`{whole}` fails: {kind}"),
            };
            error(message, None)
        })?;
        match value.kind() {
            ValueKind::String | ValueKind::Number | ValueKind::Bool => Ok(value.to_string()),
            ValueKind::Undefined => Err(error(format!("`{whole}` uses a value that is not there"), None)),
            kind => Err(error(format!("`{whole}` gives a {kind}, not a text"), None)),
        }
    }
}

/// Where `}}` stands that is not within quotes.
fn end_of(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') if text[at..].starts_with(CLOSE) => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str) -> Result<String, TemplateError> {
        let matrix = [("cc", "gcc"), ("py", "3.10"), ("jobs", "4")];
        let matrix = matrix.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Templates::new().render(text, &matrix.into_iter().collect())
    }

    #[test]
    fn expressions_are_evaluated() {
        assert_eq!(render("CC=${{ matrix.cc }} ${{matrix.py}}\n").unwrap(), "CC=gcc 3.10\n");
        assert_eq!(render("${{ matrix.cc | upper }}").unwrap(), "GCC");
        assert_eq!(render("${{ matrix['cc'] ~ '-' ~ matrix.py }}").unwrap(), "gcc-3.10");
        assert_eq!(render("${{ matrix.jobs | int * 2 }}").unwrap(), "8");
        assert_eq!(render("${{ 'x' if matrix.cc == 'gcc' else 'y' }}").unwrap(), "x");
        assert_eq!(render("${{ \"${{ }}\" }}").unwrap(), "${{ }}");
    }

    #[test]
    fn what_belongs_to_others_stays_as_it_is() {
        let text = "$A ${A} ${#A} ${A%%x} {{ b }} {% if c %} {# d #} }} {{{ '\" \n\n";
        assert_eq!(render(text).unwrap(), text);
    }

    #[test]
    fn unknown_names_are_refused_with_the_nearest() {
        let error = render("a ${{ matrix.cx }} b").unwrap_err();
        assert_eq!(error.part, "${{ matrix.cx }}");
        assert_eq!(error.message, "`matrix.cx` is not known here");
        assert_eq!(error.help.as_deref(), Some("did you mean `matrix.cc`?"));
        assert!(render("${{ env.HOME }}").unwrap_err().help.unwrap().contains("matrix.py"));
        for bad in ["${{ range(3) }}", "${{ matrix['nope'] }}", "${{ matrix }}", "${{ }}", "${{ a b }}", "${{ x"] {
            assert!(render(bad).is_err(), "{bad}");
        }
    }
}
