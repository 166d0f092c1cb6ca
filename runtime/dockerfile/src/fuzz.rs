//! What `hack/fuzz` feeds: parsers of what strangers write, with what must hold whatever they wrote.

use crate::{
    apply::State, config::Config, ignore::Ignore, instruction::Dockerfile, variables::Variables,
};

/// Parses a Dockerfile and applies all of it.
///
/// # Panics
/// When the steps do not stand in the order of their lines, or an instruction grows without end.
pub fn dockerfile(data: &[u8]) {
    let Ok(file) = Dockerfile::parse("Dockerfile", data) else { return };
    let mut last = 0;
    for stage in &file.stages {
        assert!(stage.line.first > last && stage.line.last >= stage.line.first, "{stage:?}");
        last = stage.line.last;
        let mut state = State::begin(Config::default(), crate::BuildArgs::default());
        for step in &stage.steps {
            assert!(step.line.first > last && step.line.last >= step.line.first, "{step:?}");
            last = step.line.last;
            let Ok(instruction) = step.instruction.expanded(file.escape, &state.variables()) else {
                break;
            };
            if state.apply(&instruction).is_err() {
                break;
            }
        }
    }
}

/// Expands a word.
///
/// # Panics
/// Never, which is what is tried.
pub fn word(text: &str) {
    let variables = Variables::of(["a=x", "b=", "p=/a/b.c", "s=1 2"]);
    let _ = crate::expand(text, '\\', &variables);
}

/// Reads a `.dockerignore`, and asks for the paths that it names.
///
/// # Panics
/// Never, which is what is tried.
pub fn ignore(data: &[u8]) {
    let Ok(ignore) = Ignore::parse(data) else { return };
    for path in String::from_utf8_lossy(data).lines() {
        let _ = ignore.matches(path);
    }
}

#[cfg(test)]
mod tests {
    /// Text with everything that the parser looks at.
    const SEED: &str = "# escape=\\\nARG a=1 b\nFROM --platform=$a b AS c\n\
        RUN --mount=x <<-'E' cat \\\n  # x\n\n y 3<<F\n\tz\n\tE\nF\n\
        COPY --from=0 --chown=\"a b\" [\"x\", \"y\"]\nENV a=\"${b:-'c d'}$e\" f=${a##*x}${p//b?/\\}}\n\
        HEALTHCHECK --interval=1m30s CMD [\"x\"]\nEXPOSE 80-90/udp $s\nONBUILD ADD <<G /\nq\nG\n\
        LABEL k v  w\nVOLUME /a $b\nSHELL [\"s\"]\nSTOPSIGNAL 9\nWORKDIR ../x\nCMD a b\n**/*.[a-c]\n!x\n";

    /// `hack/fuzz` looks further; this is what every run of the tests tries.
    #[test]
    fn whatever_is_written_is_parsed_or_refused() {
        // A xorshift generator, so that a failure happens again.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for _ in 0..1_000 {
            let mut data = SEED.as_bytes().to_vec();
            for _ in 0..=random(8) {
                let (at, length) = (random(data.len()), random(12));
                let end = (at + length).min(data.len());
                match random(4) {
                    0 => data[at] = u8::try_from(random(256)).unwrap(),
                    1 => drop(data.drain(at..end)),
                    2 => {
                        let part = data[at..end].to_vec();
                        let to = random(data.len());
                        data.splice(to..to, part);
                    }
                    _ => data.insert(at, b"\\$<>'\"{}[]\n =#:"[random(15)]),
                }
            }
            super::dockerfile(&data);
            super::ignore(&data);
            super::word(&String::from_utf8_lossy(&data));
        }
    }
}
