//! Lines of JSON about work that takes long: pulls, pushes, loads and builds.

use berth_image::Digest;
use serde_json::{Value, json};

/// How many characters the bar of a line has.
const BAR: u64 = 50;

/// A line about a layer. `done` are the bytes that are done of how many.
pub(crate) fn line(layer: &Digest, status: &str, done: Option<(u64, u64)>) -> Value {
    let id = layer.as_str().rsplit(':').next().unwrap_or_default().get(..12);
    match done {
        None => json!({ "status": status, "progressDetail": {}, "id": id }),
        Some((current, total)) => json!({
            "status": status,
            "progressDetail": { "current": current, "total": total },
            "progress": bar(current, total),
            "id": id,
        }),
    }
}

/// The last line of what has failed.
pub(crate) fn failed(message: &str) -> Value {
    json!({ "errorDetail": { "message": message }, "error": message })
}

/// `[=====>          ]  3.4MB/10MB`, for clients that draw no bar themselves.
fn bar(current: u64, total: u64) -> String {
    let filled = (current.saturating_mul(100) / total.max(1) / 2).min(BAR) as usize;
    let bar = format!("[{}>{}]", "=".repeat(filled), " ".repeat(BAR as usize - filled));
    let current_size = human_size(current);
    match current > total {
        true => format!("{bar} {current_size:>8}"),
        false => format!("{bar} {current_size:>8}/{}", human_size(total)),
    }
}

/// Four digits and a decimal unit: `3.001MB`.
fn human_size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while size >= 1000.0
        && let Some(next) = units.next()
    {
        size /= 1000.0;
        unit = next;
    }
    let decimals = match size {
        ..10.0 => 3,
        ..100.0 => 2,
        ..1000.0 => 1,
        _ => 0,
    };
    let digits = format!("{size:.decimals$}");
    let short = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => &digits,
    };
    format!("{short}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_those_of_dockerd() {
        let empty = " ".repeat(50);
        let full = "=".repeat(50);
        for (current, total, expected) in [
            (34_304, 3_000_000, format!("[>{empty}]   34.3kB/3MB")),
            (36_445, 3_001_214, format!("[>{empty}]  36.45kB/3.001MB")),
            (3_001_214, 3_001_214, format!("[{full}>]  3.001MB/3.001MB")),
            (3_010_560, 3_000_000, format!("[{full}>]  3.011MB")),
            (512, 1024, format!("[{}>{}]     512B/1.024kB", "=".repeat(25), " ".repeat(25))),
        ] {
            assert_eq!(bar(current, total), expected);
        }
    }
}
