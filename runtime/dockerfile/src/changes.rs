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

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> std::result::Result<String, String> {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        let config = Config { cmd: Some(vec!["sh".to_owned()]), ..Config::default() };
        let config = with_changes(config, &changes).map_err(|error| error.0)?;
        let mut config = serde_json::to_value(config).unwrap();
        let fields = config.as_object_mut().unwrap();
        fields.retain(|_, value| !value.is_null() && *value != false && *value != "");
        Ok(config.to_string())
    }

    /// What dockerd 28.5.2 made of `docker commit -c`, for a container with the command `sh`.
    #[test]
    fn changes_are_dockerds() {
        for (changes, expected) in [
            (&["RUN x"][..], Err("RUN is not a valid change command")),
            (&["run x"], Err("run is not a valid change command")),
            (&["FROM b"], Err("FROM is not a valid change command")),
            (&["ARG x"], Err("ARG is not a valid change command")),
            (&["SHELL [\"x\"]"], Err("SHELL is not a valid change command")),
            (&["FOO x"], Err("FOO is not a valid change command")),
            (&[""], Err("file with no instructions")),
            (&["ENV"], Err("ENV requires at least one argument")),
            (&["ENV x"], Err("ENV must have two arguments")),
            (&["EXPOSE 80 x"], Err("invalid containerPort: x")),
            (&["USER"], Err("USER requires exactly one argument")),
            (&["STOPSIGNAL x"], Err("invalid signal: x")),
            (&["ENV a=${"], Err("failed to process \"${\": syntax error: missing '}'")),
            (&[], Ok(r#"{"Cmd":["sh"]}"#)),
            (&["ENV a=1 b=$a", "ENV c=$a"], Ok(r#"{"Cmd":["sh"],"Env":["a=1","b=","c=1"]}"#)),
            (&["CMD [\"x\"]", "ENTRYPOINT [\"y\"]"], Ok(r#"{"Cmd":["x"],"Entrypoint":["y"]}"#)),
            (&["ENTRYPOINT [\"y\"]"], Ok(r#"{"Entrypoint":["y"]}"#)),
            (&["WORKDIR a", "WORKDIR b"], Ok(r#"{"Cmd":["sh"],"WorkingDir":"/a/b"}"#)),
            (&["ENV a=1\nENV b=2"], Ok(r#"{"Cmd":["sh"],"Env":["a=1","b=2"]}"#)),
            (&["CMD a \\", "b"], Ok(r#"{"Cmd":["/bin/sh","-c","a b"]}"#)),
            (&["ONBUILD RUN x"], Ok(r#"{"Cmd":["sh"],"OnBuild":["RUN x"]}"#)),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(changed(changes), expected, "{changes:?}");
        }
    }

    #[test]
    fn a_trigger_is_one_instruction() {
        assert_eq!(trigger("RUN <<E\nx\nE").unwrap().line.text, "RUN <<E");
        for (text, message) in [
            ("RUN x\nRUN y", "onbuild trigger should be a single expression"),
            ("FOO x", "unknown instruction: FOO (did you mean FROM?)"),
            ("FROM x", "*instructions.Stage is not a command type"),
        ] {
            assert_eq!(trigger(text).unwrap_err().0, message);
        }
    }
}
