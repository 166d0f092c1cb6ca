//! Docker's JSON, as its clients send it and expect it.

pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod host_config;
pub(crate) mod json;
pub(crate) mod registry;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Removes the fields that are `null`, at the top and in the objects named. Go decodes them to the
/// zero value, and docker-py and the CLI send many.
pub(crate) fn without_nulls(mut value: Value, nested: &[&[&str]]) -> Value {
    strip(&mut value);
    for path in nested {
        let inner = path.iter().try_fold(&mut value, |value, key| value.get_mut(*key));
        if let Some(inner) = inner {
            strip(inner);
        }
    }
    value
}

fn strip(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
    }
}

/// Go takes a string for a list of one (`strslice.StrSlice`).
pub(crate) fn words<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(Option::<Words>::deserialize(deserializer)?.map(|words| match words {
        Words::One(word) => vec![word],
        Words::Many(words) => words,
    }))
}
