//! Instructions that stand alone: `--change` of commit and import, and the triggers of `ONBUILD`.

use crate::{
    apply::State,
    config::Config,
    error::{Error, Result},
    instruction::{Instruction, Step},
    interpret,
    lines::Lines,
};

/// What a change may be.
const ALLOWED: [&str; 11] = [
    "cmd",
    "entrypoint",
    "env",
    "expose",
    "healthcheck",
    "label",
    "onbuild",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];

/// The config after these changes, in their order. Each is one instruction or more.
///
/// # Errors
/// In dockerd's words; all of them are faults of the request.
pub fn with_changes(config: Config, changes: &[String]) -> Result<Config> {
    if changes.is_empty() {
        return Ok(config);
    }
    let lines = Lines::read(changes.join("\n").as_bytes())?;
    for node in &lines.nodes {
        if !ALLOWED.contains(&node.name.to_ascii_lowercase().as_str()) {
            return Err(Error(format!("{} is not a valid change command", node.name)));
        }
    }
    let instructions: Vec<Instruction> =
        lines.nodes.into_iter().map(interpret::instruction).collect::<Result<_>>()?;
    let mut state = State::of(config);
    for instruction in instructions {
        let instruction = instruction.expanded(lines.escape, &state.variables())?;
        state.apply(&instruction)?;
    }
    Ok(state.config)
}

/// Parses what `ONBUILD` has left in an image. The escape character is that of the text itself.
///
/// # Errors
/// In dockerd's words, if it is not one instruction.
pub fn trigger(text: &str) -> Result<Step> {
    let lines = Lines::read(text.as_bytes())?;
    let mut nodes = lines.nodes.into_iter();
    let (Some(node), None) = (nodes.next(), nodes.next()) else {
        return Err(Error::new("onbuild trigger should be a single expression"));
    };
    if node.name.eq_ignore_ascii_case("from") {
        return Err(Error::new("*instructions.Stage is not a command type"));
    }
    let line = interpret::trimmed(node.line.clone());
    Ok(Step { line, instruction: interpret::instruction(node)? })
}
