//! Records and packets as builds of each version of the protocol wrote them, `v2/` and so on, and
//! the check that a type of this build reads them. The rules are in the documentation of
//! `berth_shim`; this is what keeps them.
//!
//! The files of a version that is spoken are never changed. When a version is added, its directory
//! is, with the files whose form is another one.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What a later build may add to any record.
const UNKNOWN: &str = "of_a_later_build";
/// Checks that `T` reads the file `name` of every version, and loses nothing of it; that it ignores
/// unknown fields in it; and that it needs no field that builds of that version could do without.
///
/// # Panics
/// One of these is not so, or no version has such a file.
pub fn check<T: Serialize + DeserializeOwned>(name: &str) {
    let files: Vec<PathBuf> = versions().into_iter().map(|version| version.join(name)).collect();
    let files: Vec<&PathBuf> = files.iter().filter(|path| path.exists()).collect();
    assert!(!files.is_empty(), "no version has {name}");
    for path in files {
        let text = fs::read(path).expect("a file that can be read");
        let recorded: Value = serde_json::from_slice(&text).expect("a record is JSON");
        let read = parse::<T>(&recorded)
            .unwrap_or_else(|error| panic!("{} is not read any more: {error}", path.display()));
        let again = serde_json::to_value(read).expect("a record that serialises");
        assert!(has(&again, &recorded), "{} is read as {again}", path.display());
        ignores_unknown_fields::<T>(path, &recorded);
        needs_no_more::<T>(path, &recorded);
    }
}

/// The directories of the versions, oldest first.
fn versions() -> Vec<PathBuf> {
    let entries = fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the directory of this crate");
    let is_version = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let mut versions: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_version).collect();
    versions.sort_unstable();
    versions
}

fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, serde_json::Error> {
    // From text, as it is read in earnest: from a `Value`, borrowed text and numbers differ.
    serde_json::from_str(&value.to_string())
}

/// Whether `new` has all that `old` has. Absent is the same as null.
fn has(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(key, value)| has(new.get(key).unwrap_or(&Value::Null), value))
        }
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| has(new, old))
        }
        _ => new == old,
    }
}

fn ignores_unknown_fields<T: DeserializeOwned>(path: &Path, recorded: &Value) {
    for place in objects(recorded) {
        let mut later = recorded.clone();
        object(&mut later, &place).insert(UNKNOWN.to_owned(), UNKNOWN.into());
        // Other errors are of an object that stands for a variant of an enum: it has one key.
        let error = parse::<T>(&later).err().map_or_else(String::new, |error| error.to_string());
        assert!(!error.contains("unknown field"), "{} in {place:?}: {error}", path.display());
    }
}

/// The fields that builds of that version always wrote are in the file `required` beside the record.
fn needs_no_more<T: DeserializeOwned>(path: &Path, recorded: &Value) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let text = fs::read_to_string(path.with_file_name("required")).unwrap_or_default();
    let allowed: BTreeSet<&str> = text.lines().collect();
    let mut needed = BTreeSet::new();
    for place in objects(recorded) {
        for key in object(&mut recorded.clone(), &place).keys() {
            let mut without = recorded.clone();
            object(&mut without, &place).remove(key);
            if parse::<T>(&without).is_err() {
                needed.insert(format!("{name} {}/{key}", without_indices(&place)));
            }
        }
    }
    let more: Vec<&str> =
        needed.iter().map(String::as_str).filter(|line| !allowed.contains(line)).collect();
    assert!(
        more.is_empty(),
        "fields without a default, which older builds need not have written:\n{}",
        more.join("\n")
    );
}

/// JSON pointers (RFC 6901) to all objects in `value`, itself included.
fn objects(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut below = |key: &str, value: &Value| {
        let key = key.replace('~', "~0").replace('/', "~1");
        found.extend(objects(value).into_iter().map(|place| format!("/{key}{place}")));
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| below(&index.to_string(), value));
        }
        _ => {}
    }
    if value.is_object() {
        found.push(String::new());
    }
    found
}

fn object<'a>(value: &'a mut Value, place: &str) -> &'a mut serde_json::Map<String, Value> {
    value.pointer_mut(place).and_then(Value::as_object_mut).expect("an object at its place")
}

/// A place with `*` for each index: the elements of a list are of one type.
fn without_indices(place: &str) -> String {
    let name =
        |part: &str| if part.parse::<u32>().is_ok() { "*".to_owned() } else { part.to_owned() };
    place.split('/').map(name).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_that_lost_something_is_told_from_one_that_gained() {
        let old = json!({ "a": [{ "b": 1 }], "c": null });
        for (new, whole) in [
            (json!({ "a": [{ "b": 1, "new": 2 }] }), true),
            (json!({ "a": [{ "b": 2 }] }), false),
            (json!({ "a": [] }), false),
            (json!({}), false),
        ] {
            assert_eq!(has(&new, &old), whole, "{new}");
        }
    }

    #[test]
    fn every_object_of_a_record_is_found() {
        let record = json!({ "a/b": { "c": [1, { "d": {} }] } });
        let mut places = objects(&record);
        places.sort_unstable();
        assert_eq!(places, ["", "/a~1b", "/a~1b/c/1", "/a~1b/c/1/d"]);
        assert_eq!(without_indices("/a~1b/c/1/d"), "/a~1b/c/*/d");
    }
}
