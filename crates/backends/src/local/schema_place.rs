//! Where in a JSON schema a mistake is, found by trying: llguidance says what is wrong, and mostly not where.

use serde_json::Value;

/// Most schemas that are tried for a mistake; then the place is as near as it was found by then.
const TRIES: usize = 500;

/// Keywords whose value is a schema.
const SCHEMAS: [&str; 11] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords whose value is a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "items", "oneOf", "prefixItems"];
/// Keywords whose value is an object of schemas; those that others refer to first.
const OBJECTS: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// The JSON pointer (RFC 6901) of the innermost schema that has the mistake, or of its keyword if only one can be meant.
/// `has_mistake` says of a changed schema whether it has the same mistake still. `None` for the schema as a whole.
pub(super) fn find(schema: &Value, has_mistake: impl Fn(&Value) -> bool) -> Option<String> {
    let mut search = Search { has_mistake, left: TRIES };
    let mut schema = schema.clone();
    let mut place = String::new();
    while let Some(inner) = search.inner(&mut schema, &place) {
        place = inner;
    }
    if let Some(keyword) = search.keyword(&schema, &place) {
        place = keyword;
    }
    (!place.is_empty()).then_some(place)
}

struct Search<F> {
    has_mistake: F,
    left: usize,
}

impl<F: Fn(&Value) -> bool> Search<F> {
    /// `None` if enough was tried.
    fn try_out(&mut self, schema: &Value) -> Option<bool> {
        self.left = self.left.checked_sub(1)?;
        Some((self.has_mistake)(schema))
    }

    /// The schema directly within the one at `place` that has the mistake; what is beside it is taken out if it can be.
    fn inner(&mut self, schema: &mut Value, place: &str) -> Option<String> {
        let all = inner_schemas(schema.pointer(place)?, place);
        let without = |except: Option<&String>| {
            let mut changed = schema.clone();
            all.iter().filter(|inner| Some(*inner) != except).for_each(|inner| take_out(&mut changed, inner));
            changed
        };
        if all.is_empty() || self.try_out(&without(None))? {
            return None;
        }
        for inner in &all {
            let alone = without(Some(inner));
            if self.try_out(&alone)? {
                *schema = alone;
                return Some(inner.clone());
            }
        }
        // It takes two: one that refers to the other.
        for inner in &all {
            let mut changed = schema.clone();
            take_out(&mut changed, inner);
            if !self.try_out(&changed)? {
                return Some(inner.clone());
            }
        }
        None
    }

    /// The only keyword of the schema at `place` without which it has no such mistake.
    fn keyword(&mut self, schema: &Value, place: &str) -> Option<String> {
        let mut found = None;
        for name in schema.pointer(place)?.as_object()?.keys() {
            let mut changed = schema.clone();
            changed.pointer_mut(place)?.as_object_mut()?.shift_remove(name);
            if !self.try_out(&changed)? && found.replace(within(place, name)).is_some() {
                return None;
            }
        }
        found
    }
}

/// Pointers of the schemas directly within the one at `place`.
fn inner_schemas(schema: &Value, place: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Some(schema) = schema.as_object() else { return found };
    for name in OBJECTS {
        let inner = schema.get(name).and_then(Value::as_object);
        found.extend(inner.into_iter().flat_map(|inner| inner.keys()).map(|key| within(&within(place, name), key)));
    }
    for name in LISTS {
        let inner = schema.get(name).and_then(Value::as_array).map_or(0, Vec::len);
        found.extend((0..inner).map(|at| within(&within(place, name), &at.to_string())));
    }
    for name in SCHEMAS {
        found.extend(schema.get(name).filter(|inner| !inner.is_array()).map(|_| within(place, name)));
    }
    found
}

/// Puts a schema that allows everything in the place of another.
fn take_out(schema: &mut Value, place: &str) {
    if let Some(inner) = schema.pointer_mut(place) {
        *inner = Value::Bool(true);
    }
}

fn within(place: &str, name: &str) -> String {
    format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"))
}
