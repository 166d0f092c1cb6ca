//! `HostConfig.LogConfig`: which drivers and options there are, and what they mean. Those of
//! `json-file` and `local` differ in their defaults here: the files themselves are the shim's, and
//! nobody reads them but the daemon.

use std::collections::BTreeMap;

use berth_shim::spec::LogRotation;

use crate::api::host_config::LogConfig;

/// What json-file and local know.
const OPTIONS: [&str; 8] =
    ["compress", "env", "env-regex", "labels", "labels-regex", "max-file", "max-size", "tag"];
/// What every driver knows.
const COMMON: [&str; 2] = ["max-buffer-size", "mode"];
/// The size of a file of `local`, in bytes, and how many there are.
const LOCAL: LogRotation = LogRotation { max_bytes: 20 << 20, max_files: 5 };

/// Refuses drivers and options that there are not, as a create does.
///
/// # Errors
/// In dockerd's words.
pub(crate) fn check(log: &LogConfig) -> Result<(), String> {
    let options = &log.config;
    match log.r#type.as_str() {
        "" | "json-file" | "local" => {}
        "none" => return Ok(()),
        unknown => {
            return Err(format!(
                "error looking up logging plugin {unknown}: plugin \"{unknown}\" not found"
            ));
        }
    }
    let mode = options.get("mode").map_or("", String::as_str);
    if !["", "blocking", "non-blocking"].contains(&mode) {
        return Err(format!("logger: logging mode not supported: {mode}"));
    }
    if options.contains_key("max-buffer-size") && mode != "non-blocking" {
        return Err("logger: max-buffer-size option is only supported with \
                    'mode=non-blocking'"
            .to_owned());
    }
    let is_known = |name: &str| OPTIONS.contains(&name) || COMMON.contains(&name);
    if let Some(unknown) = options.keys().find(|name| !is_known(name)) {
        return Err(match log.r#type.as_str() {
            "local" => format!("unknown log opt '{unknown}' for log driver local"),
            _ => format!("unknown log opt '{unknown}' for json-file log driver"),
        });
    }
    match compresses(options) {
        Ok(Some(true)) => {
            Err("log opt 'compress' is not supported: the files of a log stay as they \
                               are"
            .to_owned())
        }
        // What is no boolean is told at the start, as all other values are.
        Ok(Some(false) | None) | Err(_) => Ok(()),
    }
}

/// When a log goes on in a new file: `None` if it never does.
///
/// # Errors
/// In dockerd's words, which it says at a start.
pub(crate) fn rotation(log: &LogConfig) -> Result<Option<LogRotation>, String> {
    match log.r#type.as_str() {
        "none" => Ok(None),
        "local" => of_local(&log.config).map(Some),
        _ => of_json_file(&log.config),
    }
}

fn of_json_file(options: &BTreeMap<String, String>) -> Result<Option<LogRotation>, String> {
    let size = match options.get("max-size") {
        Some(text) => match parse_size(text)? {
            0 => return Err("max-size must be a positive number".to_owned()),
            size => Some(size),
        },
        None => None,
    };
    let files = match options.get("max-file").map(|text| parse_number(text)).transpose()? {
        Some(..=0) => return Err("max-file cannot be less than 1".to_owned()),
        Some(files) => count(files),
        None => 1,
    };
    compresses(options)?;
    Ok(size.map(|max_bytes| LogRotation { max_bytes, max_files: files }))
}

fn of_local(options: &BTreeMap<String, String>) -> Result<LogRotation, String> {
    let invalid =
        |name: &str, text: &str, why: String| format!("invalid value for {name}: {text}: {why}");
    let mut rotation = LOCAL;
    if let Some(text) = options.get("max-size") {
        rotation.max_bytes = parse_size(text).map_err(|why| invalid("max-size", text, why))?;
    }
    if let Some(text) = options.get("max-file") {
        let files = parse_number(text).map_err(|why| invalid("max-file", text, why))?;
        if files < 0 {
            return Err("max-file must not be negative".to_owned());
        }
        rotation.max_files = count(files).max(1);
    }
    let compresses =
        compresses(options).map_err(|why| format!("invalid boolean value for compress: {why}"))?;
    // It would by default, which one file alone cannot be.
    if rotation.max_files == 1 && compresses != Some(false) {
        return Err("compression cannot be enabled when max file count is 1".to_owned());
    }
    Ok(rotation)
}

/// Nobody has more files than this.
fn count(files: i64) -> u32 {
    u32::try_from(files).unwrap_or(u32::MAX)
}

fn compresses(options: &BTreeMap<String, String>) -> Result<Option<bool>, String> {
    let Some(text) = options.get("compress") else { return Ok(None) };
    match text.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Some(true)),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Some(false)),
        _ => Err(format!("strconv.ParseBool: parsing \"{text}\": invalid syntax")),
    }
}

fn parse_number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("strconv.Atoi: parsing \"{text}\": invalid syntax"))
}

/// `10`, `10k`, `1.5MB`: in bytes, by powers of 1000.
fn parse_size(text: &str) -> Result<u64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let power = match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(invalid()),
    };
    // Out of range becomes the largest number.
    Ok((number * 1000_f64.powi(power)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(driver: &str, options: &[(&str, &str)]) -> LogConfig {
        let config = options.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        LogConfig { r#type: driver.into(), config: config.collect() }
    }

    #[test]
    fn drivers_and_options_are_checked_at_a_create() {
        for (driver, options, expected) in [
            ("", &[("max-size", "x"), ("max-file", "0"), ("compress", "x")][..], Ok(())),
            ("none", &[("nope", "1")], Ok(())),
            ("nope", &[], Err("error looking up logging plugin nope: plugin \"nope\" not found")),
            ("json-file", &[("nope", "1")], Err("unknown log opt 'nope' for json-file log driver")),
            ("local", &[("nope", "1")], Err("unknown log opt 'nope' for log driver local")),
            ("", &[("mode", "x")], Err("logger: logging mode not supported: x")),
            ("", &[("mode", "non-blocking"), ("max-buffer-size", "1m")], Ok(())),
            ("", &[("compress", "false")], Ok(())),
            (
                "",
                &[("compress", "true")],
                Err("log opt 'compress' is not supported: the files of a log stay as they are"),
            ),
        ] {
            let checked = check(&log(driver, options));
            assert_eq!(checked, expected.map_err(str::to_owned), "{driver} {options:?}");
        }
    }

    #[test]
    fn sizes_and_numbers_are_read_at_a_start() {
        let of = |max_bytes, max_files| Ok(Some(LogRotation { max_bytes, max_files }));
        for (driver, options, expected) in [
            ("none", &[][..], Ok(None)),
            ("json-file", &[], Ok(None)),
            ("json-file", &[("max-file", "3")], Ok(None)),
            ("json-file", &[("max-size", "10k")], of(10_000, 1)),
            ("json-file", &[("max-size", "1.5 MB"), ("max-file", "3")], of(1_500_000, 3)),
            ("json-file", &[("max-size", "x")], Err("invalid size: 'x'")),
            ("json-file", &[("max-size", "-1")], Err("invalid size: '-1'")),
            ("json-file", &[("max-size", "0")], Err("max-size must be a positive number")),
            ("json-file", &[("max-file", "0")], Err("max-file cannot be less than 1")),
            ("json-file", &[("max-file", "x")], Err("strconv.Atoi: parsing \"x\": invalid syntax")),
            ("local", &[], of(20 << 20, 5)),
            ("local", &[("max-size", "1g"), ("max-file", "2")], of(1_000_000_000, 2)),
            (
                "local",
                &[("max-file", "1")],
                Err("compression cannot be enabled when max file count is 1"),
            ),
            ("local", &[("max-file", "1"), ("compress", "false")], of(20 << 20, 1)),
            (
                "local",
                &[("max-size", "x")],
                Err("invalid value for max-size: x: invalid size: 'x'"),
            ),
        ] {
            let read = rotation(&log(driver, options));
            assert_eq!(read, expected.map_err(str::to_owned), "{driver} {options:?}");
        }
    }
}
