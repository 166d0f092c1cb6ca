//! What is to be asked, as files: `NAME.http` has requests, `NAME.sh` has command lines.
//!
//! Scenarios begin with a line `## title`; lines that begin with `#` and empty ones are comments.
//! In `NAME.sh` every other line is a command for sh(1). In `NAME.http` it is one of:
//!
//! ```text
//! METHOD PATH [BODY] [< INPUT]   a request; INPUT is sent after the upgrade to a raw connection
//! ~METHOD PATH [BODY]            only names and types of the answer are compared
//! BEGIN METHOD PATH [BODY]       a request whose answer is awaited by END
//! END                            it tells, too, whether the head of that answer was there before
//! SLEEP MILLISECONDS
//! UNTIL PATH POINTER VALUE       asks until the value at this JSON pointer is VALUE
//! ```
//!
//! A path without a version is that of API 1.51; `//PATH` is sent without a version. What a query
//! may not have is escaped. `$id` is the last Id that was answered, `$since` when the scenario
//! began, `$now` the time. BODY is JSON, or `raw:TEXT`, or `tar:NAME=TEXT`. UPGRADE for METHOD is a
//! POST that asks for a raw connection. INPUT is a JSON string; `<` closes the sending half after
//! it, `<<` leaves it open. `@TYPE` before BODY is another content type, `@` is none.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// Steps that build on each other. Between scenarios all containers are removed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name of the file, and title.
    pub name: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub enum Step {
    Request(Line),
    Begin(Line),
    End,
    Sleep(u64),
    Until { path: String, pointer: String, value: String },
    Command(String),
}

/// A request as its line has it.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// The line without its input, by which differences are reported.
    pub text: String,
    pub method: String,
    pub path: String,
    pub content_type: Option<String>,
    pub body: Option<Body>,
    pub input: Option<Input>,
    pub shape: bool,
}

#[derive(Clone, Debug)]
pub enum Body {
    Text(String),
    Tar { name: String, content: String },
}

#[derive(Clone, Debug)]
pub struct Input {
    pub bytes: Vec<u8>,
    pub half_close: bool,
}

/// Reads all scenarios of a directory, in the order of the names of its files, but builds last: what
/// they leave has other ids on each side, and the lists of others would show it.
///
/// # Errors
/// A file cannot be read, or a line is none of the forms.
pub fn read(directory: &Path) -> Result<Vec<Scenario>> {
    let mut paths: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort_by_key(|path| (path.file_stem().is_some_and(|stem| stem == "build"), path.clone()));
    let mut scenarios = Vec::new();
    for path in paths {
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let is_script = path.extension().is_some_and(|extension| extension == "sh");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        scenarios.extend(parse(name, &text, is_script)?);
    }
    Ok(scenarios)
}

fn parse(file: &str, text: &str, is_script: bool) -> Result<Vec<Scenario>> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(title) = line.strip_prefix("## ") {
            scenarios.push(Scenario { name: format!("{file}: {title}"), steps: Vec::new() });
        } else if !line.is_empty() && !line.starts_with('#') {
            let step = if is_script { Step::Command(line.to_owned()) } else { step(line)? };
            let scenario = scenarios.last_mut().with_context(|| format!("no title: {line}"))?;
            scenario.steps.push(step);
        }
    }
    Ok(scenarios)
}

fn step(line: &str) -> Result<Step> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    Ok(match word {
        "SLEEP" => Step::Sleep(rest.parse().with_context(|| line.to_owned())?),
        "UNTIL" => match rest.split_whitespace().collect::<Vec<_>>()[..] {
            [path, pointer, value] => Step::Until {
                path: path.to_owned(),
                pointer: pointer.to_owned(),
                value: value.to_owned(),
            },
            _ => bail!("UNTIL PATH POINTER VALUE: {line}"),
        },
        "BEGIN" => Step::Begin(request(rest)?),
        "END" => Step::End,
        _ => Step::Request(request(line)?),
    })
}

fn request(line: &str) -> Result<Line> {
    let (line, shape) = line.strip_prefix('~').map_or((line, false), |line| (line, true));
    let (line, input) = split_input(line)?;
    let (method, rest) = line.split_once(' ').with_context(|| line.to_owned())?;
    let (path, mut rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let mut request = Line {
        text: line.to_owned(),
        method: method.to_owned(),
        path: path.to_owned(),
        input,
        shape,
        ..Line::default()
    };
    if let Some(typed) = rest.strip_prefix('@') {
        let (content_type, body) = typed.split_once(' ').unwrap_or((typed, ""));
        request.content_type = Some(content_type.to_owned());
        rest = body;
    }
    request.body = body(rest)?;
    Ok(request)
}

fn split_input(line: &str) -> Result<(&str, Option<Input>)> {
    for (separator, half_close) in [(" << ", false), (" < ", true)] {
        if let Some((line, text)) = line.rsplit_once(separator) {
            let text: String = serde_json::from_str(text).with_context(|| line.to_owned())?;
            return Ok((line, Some(Input { bytes: text.into_bytes(), half_close })));
        }
    }
    Ok((line, None))
}

fn body(text: &str) -> Result<Option<Body>> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(text) = text.strip_prefix("raw:") {
        return Ok(Some(Body::Text(text.to_owned())));
    }
    if let Some(file) = text.strip_prefix("tar:") {
        let (name, content) = file.split_once('=').with_context(|| text.to_owned())?;
        return Ok(Some(Body::Tar { name: name.to_owned(), content: content.to_owned() }));
    }
    serde_json::from_str::<serde_json::Value>(text).with_context(|| text.to_owned())?;
    Ok(Some(Body::Text(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_steps() {
        let text = "# comment\n## first\nSLEEP 5\n~GET /info\n\
            UPGRADE /containers/c/attach?stream=1 < \"a\\n\"\nPOST /x @text/plain raw:{\n";
        let scenarios = parse("f", text, false).unwrap();
        assert_eq!(scenarios[0].name, "f: first");
        let [Step::Sleep(5), Step::Request(info), Step::Request(attach), Step::Request(raw)] =
            &scenarios[0].steps[..]
        else {
            panic!("{scenarios:?}");
        };
        assert!(info.shape && info.path == "/info");
        let input = attach.input.as_ref().unwrap();
        assert!(input.bytes == b"a\n" && input.half_close);
        assert_eq!(raw.content_type.as_deref(), Some("text/plain"));
        assert!(matches!(&raw.body, Some(Body::Text(text)) if text == "{"));
        assert!(parse("f", "GET /without/title", false).is_err());
    }
}
