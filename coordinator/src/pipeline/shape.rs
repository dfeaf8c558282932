//! A tree against the schema: unknown keys, missing keys, wrong kinds of values. What fits comes out as JSON, so that
//! one wrong value does not hide what else is wrong.

use serde_json::{Map, Number, Value as Json};

use super::mistake::{Mistake, Mistakes};
use super::raw;
use super::tree::{Entry, Node, Value};

/// Keys that are planned: refused by name, so that nobody thinks they were misspelt, or worse, that they work.
const NOT_YET: [&str; 7] = ["array", "arrays", "artifacts", "exclusive", "outputs", "secrets", "services"];

/// `None` if nothing can be made of it; then a mistake is noted.
pub(super) fn shape(root: &Node, mistakes: &mut Mistakes) -> Option<Json> {
    node(root, raw::schema(), "the pipeline", mistakes)
}

/// `what` is how messages call the node: `` `needs` ``.
fn node(node: &Node, schema: &Json, what: &str, mistakes: &mut Mistakes) -> Option<Json> {
    if let Some(words) = words(schema) {
        return word(node, &words, what, mistakes);
    }
    let kinds = kinds(schema);
    let fits = |kind: &str| kinds.contains(&kind);
    match &node.value {
        Value::Map(entries) if fits("object") => map(node, entries, schema, what, mistakes),
        Value::List(items) if fits("array") => list(items, schema, what, mistakes),
        Value::Scalar { text, .. } if node.kind() == "a string" && fits("string") => Some(Json::String(text.clone())),
        Value::Scalar { text, .. } => match node.kind() {
            // The text, not the value: 3.10 stays 3.10.
            "a number" if fits("string") && fits("number") => Some(Json::String(text.clone())),
            "a boolean" if fits("string") && fits("boolean") => Some(Json::String(text.clone())),
            "a number" if fits("number") || fits("integer") => number(node, text, schema, what, mistakes),
            "a boolean" if fits("boolean") => Some(Json::Bool(text.eq_ignore_ascii_case("true"))),
            _ => wrong(node, schema, what, mistakes),
        },
        _ => wrong(node, schema, what, mistakes),
    }
}

fn map(node: &Node, entries: &[Entry], schema: &Json, what: &str, mistakes: &mut Mistakes) -> Option<Json> {
    let properties = schema["properties"].as_object();
    let mut object = Map::new();
    for entry in entries {
        let value_schema = match (properties, &schema["additionalProperties"]) {
            (Some(properties), _) => properties.get(&entry.key),
            (None, values) => Some(values),
        };
        match value_schema {
            Some(value_schema) => {
                let value = self::node(&entry.node, value_schema, &format!("`{}`", entry.key), mistakes);
                object.extend(value.map(|value| (entry.key.clone(), value)));
            }
            None => mistakes.note(unknown(entry, properties, what)),
        }
    }
    let mut complete = true;
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
        if !object.contains_key(key) {
            complete = false;
            if node.entry(key).is_none() {
                let mistake = Mistake::new(format!("{what} has no `{key}`"));
                mistakes.note(mistake.at(node.head(), format!("`{key}` is missing here")).follows());
            }
        }
    }
    complete.then_some(Json::Object(object))
}

fn unknown(entry: &Entry, properties: Option<&Map<String, Json>>, what: &str) -> Mistake {
    let key = &entry.key;
    if NOT_YET.contains(&key.as_str()) || (what, key.as_str()) == ("`cache`", "paths") {
        return Mistake::new(format!("`{key}` is not there yet")).at(entry.key_span.clone(), "planned for later");
    }
    let mistake = Mistake::new(format!("unknown key `{key}` in {what}")).at(entry.key_span.clone(), "not a key here");
    if key == "<<" {
        return mistake.help("merge keys are not read; what steps share goes under `defaults`");
    }
    let known = || properties.into_iter().flat_map(Map::keys).map(String::as_str);
    match super::mistake::nearest(key, known()) {
        Some(near) => mistake.help(format!("did you mean `{near}`?")),
        None => mistake.help(format!("known are {}", known().collect::<Vec<_>>().join(", "))),
    }
}

fn list(items: &[Node], schema: &Json, what: &str, mistakes: &mut Mistakes) -> Option<Json> {
    let what = match what {
        "`steps`" => "a step".to_owned(),
        "`sources`" => "a source".to_owned(),
        list => format!("an entry of {list}"),
    };
    let values: Vec<_> = items.iter().map(|item| node(item, &schema["items"], &what, mistakes)).collect();
    // All or none: later stages find an entry's place in the file by its index.
    values.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
}

fn number(node: &Node, text: &str, schema: &Json, what: &str, mistakes: &mut Mistakes) -> Option<Json> {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
    let low = schema["minimum"].as_f64().unwrap_or(f64::NEG_INFINITY);
    let high = schema["maximum"].as_f64().unwrap_or(f64::INFINITY);
    let whole = kinds(schema).contains(&"integer");
    let number = match (text.parse::<u64>(), text.parse::<i64>()) {
        (Ok(integer), _) => Some(Number::from(integer)),
        (_, Ok(integer)) => Some(Number::from(integer)),
        _ if whole => None,
        _ => value.and_then(Number::from_f64),
    };
    match (number, value) {
        (Some(number), Some(value)) if (low..=high).contains(&value) => Some(Json::Number(number)),
        _ => {
            let noun = if whole { "a whole number" } else { "a number" };
            let range = match (low.is_finite(), high.is_finite()) {
                (true, true) => format!(" from {low} to {high}"),
                (true, false) => format!(" from {low}"),
                _ => String::new(),
            };
            mistakes.note(Mistake::new(format!("{what} takes {noun}{range}")).at(node.span.clone(), "not this"));
            None
        }
    }
}

fn word(node: &Node, words: &[&str], what: &str, mistakes: &mut Mistakes) -> Option<Json> {
    if let Value::Scalar { text, .. } = &node.value
        && node.kind() != "nothing"
    {
        if words.contains(&text.as_str()) {
            return Some(Json::String(text.clone()));
        }
        let mistake = Mistake::new(format!("{what} is {}, not `{text}`", words.join(" or ")));
        mistakes.note(mistake.at(node.span.clone(), "not known").nearest(text, words.iter().copied()));
    } else {
        mistakes.note(Mistake::new(format!("{what} takes {}", words.join(" or "))).at(node.head(), "not this"));
    }
    None
}

fn wrong(node: &Node, schema: &Json, what: &str, mistakes: &mut Mistakes) -> Option<Json> {
    let kinds = kinds(schema);
    let wanted = match kinds.as_slice() {
        ["object"] => "a mapping",
        ["array"] => "a list",
        ["boolean"] => "true or false",
        ["integer"] => "a whole number",
        ["number"] => "a number",
        ["string"] => "a string",
        ["integer", "object"] => "a whole number or a mapping",
        ["string", "object"] => "a string or a mapping",
        _ => "a string, a number or a boolean",
    };
    let is = node.kind();
    let message = match is {
        "nothing" => format!("{what} has no value"),
        _ => format!("{what} takes {wanted}, this is {is}"),
    };
    let mistake = Mistake::new(message).at(node.head(), format!("{wanted} goes here"));
    let text = match &node.value {
        Value::Scalar { text, .. } => text.as_str(),
        _ => "",
    };
    mistakes.note(match (wanted, is) {
        ("a string", "a number") if matches!(what, "`timeout`" | "`queue_timeout`" | "`backoff`") => {
            mistake.help(format!("give it a unit: \"{text}s\", \"{text}m\" or \"{text}h\""))
        }
        ("a string", "a number") if matches!(what, "`memory`" | "`output_max`") => {
            mistake.help(format!("give it a unit: \"{text}MiB\" or \"{text}GiB\""))
        }
        ("a string" | "a string or a mapping", "a number" | "a boolean") => {
            mistake.help(format!("put it in quotes: \"{text}\""))
        }
        ("a list", "a string" | "a number") => mistake.help(format!("put it in brackets: [{text}]")),
        (_, "a boolean") if what == "`cache`" => {
            mistake.help("caching by content is not there yet; give it a `key` of your own")
        }
        ("a number" | "a whole number", "a string") => mistake.help("numbers stand without quotes and units"),
        ("true or false", _) if matches!(text, "yes" | "on") => mistake.help("did you mean `true`?"),
        ("true or false", _) if matches!(text, "no" | "off") => mistake.help("did you mean `false`?"),
        _ => mistake,
    });
    None
}

/// The values of `type`.
fn kinds(schema: &Json) -> Vec<&str> {
    match &schema["type"] {
        Json::String(kind) => vec![kind],
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The words of an enumeration: `enum`, or `oneOf` with a `const` each where they are described.
fn words(schema: &Json) -> Option<Vec<&str>> {
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(Json::as_str).collect();
    }
    let choices = schema["oneOf"].as_array()?;
    let mut words = Vec::new();
    for choice in choices {
        match (choice["const"].as_str(), choice["enum"].as_array()) {
            (Some(word), _) => words.push(word),
            (None, Some(several)) => words.extend(several.iter().filter_map(Json::as_str)),
            (None, None) => return None,
        }
    }
    Some(words)
}
