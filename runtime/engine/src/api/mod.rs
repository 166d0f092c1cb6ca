//! Docker's JSON, as its clients send it and expect it.

pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod host_config;
pub(crate) mod json;
pub(crate) mod registry;

use serde_json::Value;

/// What the engine says that it is: the dockerd whose API it serves.
pub(crate) const SERVER_VERSION: &str = "28.5.2";

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
