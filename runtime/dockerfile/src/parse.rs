//! From the bytes of a file to a [`Dockerfile`].

use crate::{
    error::{Error, Result},
    flags::{Flags, Kind},
    instruction::{Dockerfile, Instruction, MetaArgs, Stage, Step},
    interpret,
    lines::Lines,
    node::{Arguments, Node},
};

impl Dockerfile {
    /// Parses the file that is named `name` in errors.
    ///
    /// # Errors
    /// The first thing that is wrong, in dockerd's words.
    pub fn parse(name: &str, file: &[u8]) -> Result<Self> {
        if file.is_empty() {
            return Err(Error(format!("the Dockerfile ({name}) cannot be empty")));
        }
        let lines = Lines::read(file)
            .map_err(|Error(why)| Error(format!("failed to parse {name}: {why}")))?;
        let mut parsed = Self {
            escape: lines.escape,
            meta_args: Vec::new(),
            stages: Vec::new(),
            warnings: warnings(&lines.empty_continuations),
        };
        for node in lines.nodes {
            let number = node.line.first;
            parsed.add(node).map_err(|fault| match fault {
                Fault::Instruction(Error(why)) => {
                    Error(format!("dockerfile parse error on line {number}: {why}"))
                }
                Fault::Place(error) => error,
            })?;
        }
        if parsed.stages.is_empty() {
            // dockerd 28 ends with a panic that its HTTP server catches.
            return Err(Error::new("no build stage in current context"));
        }
        Ok(parsed)
    }

    fn add(&mut self, node: Node) -> std::result::Result<(), Fault> {
        if node.name.eq_ignore_ascii_case("from") {
            self.stages.push(stage(node).map_err(Fault::Instruction)?);
            return Ok(());
        }
        let line = interpret::trimmed(node.line.clone());
        let instruction = interpret::instruction(node).map_err(Fault::Instruction)?;
        match (self.stages.last_mut(), instruction) {
            (Some(stage), instruction) => stage.steps.push(Step { line, instruction }),
            (None, Instruction::Arg(arguments)) => {
                self.meta_args.push(MetaArgs { line, arguments });
            }
            (None, _) => {
                return Err(Fault::Place(Error::new("no build stage in current context")));
            }
        }
        Ok(())
    }
}

enum Fault {
    /// The instruction itself is wrong; dockerd says in which line.
    Instruction(Error),
    /// It stands where it may not.
    Place(Error),
}

fn warnings(empty_continuations: &[String]) -> Vec<String> {
    let mut warnings: Vec<String> = empty_continuations
        .iter()
        .map(|line| format!("[WARNING]: Empty continuation line found in: {line}"))
        .collect();
    if !warnings.is_empty() {
        let end = "[WARNING]: Empty continuation lines will become errors in a future release.";
        warnings.push(end.to_owned());
    }
    warnings
}

/// `FROM [--platform=P] IMAGE [AS NAME]`.
fn stage(node: Node) -> Result<Stage> {
    let Arguments::Words(words) = &node.arguments else {
        return Err(Error::new("FROM requires either one or three arguments"));
    };
    let (from, name) = match words.as_slice() {
        [from] => (from, None),
        [from, r#as, name] if r#as.eq_ignore_ascii_case("as") => (from, Some(stage_name(name)?)),
        _ => return Err(Error::new("FROM requires either one or three arguments")),
    };
    let flags = Flags::parse(&node.flags, &[("platform", Kind::Text)])?;
    Ok(Stage {
        from: from.clone(),
        name,
        platform: flags.text("platform").filter(|text| !text.is_empty()).map(str::to_owned),
        line: interpret::trimmed(node.line),
        steps: Vec::new(),
    })
}

/// The name in lower case. It begins with a letter, so that no number is a name.
fn stage_name(name: &str) -> Result<String> {
    let lower = name.to_lowercase();
    let is_valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
        && lower
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'));
    if !is_valid {
        let name = crate::go::quote(name);
        return Err(Error(format!(
            "invalid name for build stage: {name}, name can't start with a number or contain symbols"
        )));
    }
    Ok(lower)
}
