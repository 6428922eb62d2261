//! `phalanx wire`: look at messages without a network.

use std::io::{self, BufRead, BufWriter, ErrorKind, Read, Write};
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use crate::protocol::{
    DecodeError, ExecutorToMiner, FacilitatorToValidator, MinerToExecutor, MinerToValidator, ValidatorToFacilitator,
    ValidatorToMiner,
};

/// The longest line that is read as a message, in bytes: the largest legal frame is 50 MiB, and what is longer would
/// only fill the memory.
pub const MAX_LINE_BYTES: usize = 64 * 1024 * 1024;

/// The arguments of `phalanx wire`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `phalanx wire`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read messages, one a line, and print each as this program would send it, or why it is refused
    ///
    /// For each line on stdin a line on stdout: `ok`, a tab and the message, or `error`, a tab and the reason. Exit 1
    /// if any was refused.
    Check {
        /// The link and the direction that the messages belong to
        #[arg(long, value_name = "LINK", env = "PHALANX_WIRE_LINK")]
        link: Link,
    },
}

/// A link of the network in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// Job requests, reports of cheats and answers
    FacilitatorToValidator,
    /// Authentication, heartbeats, status updates and machine specs
    ValidatorToFacilitator,
    /// Authentication, the two halves of a job, and receipts
    ValidatorToMiner,
    /// Manifests, and how a job goes
    MinerToValidator,
    /// How a job goes
    ExecutorToMiner,
    /// The two halves of a job
    MinerToExecutor,
}

/// Runs the command: exit 0 if all was read, 1 if anything was refused or stdin or stdout failed (a closed pipe says
/// nothing on stderr).
///
/// Blocks in reading stdin until its end and in writing stdout; a signal that ends the process interrupts either.
pub fn run(args: Args) -> ExitCode {
    let Command::Check { link } = args.command;
    match check(link, io::stdin().lock(), BufWriter::new(io::stdout().lock())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: wire check stopped: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads one message a line to the end of `input`, writes a line for each, and says whether all could be read.
///
/// Fails only when reading or writing does, and then after what was answered so far. Blocks as the two do.
pub fn check(link: Link, mut input: impl BufRead, mut output: impl Write) -> io::Result<bool> {
    let mut all_ok = true;
    let mut line = Vec::new();
    while let Some(length) = next_line(&mut input, &mut line)? {
        match read(link, &line, length) {
            Ok(message) => writeln!(output, "ok\t{message}")?,
            Err(reason) => {
                all_ok = false;
                writeln!(output, "error\t{reason}")?;
            }
        }
    }
    output.flush()?;
    Ok(all_ok)
}

/// The message as this program would send it, or why it cannot be read.
fn read(link: Link, line: &[u8], length: usize) -> Result<String, String> {
    if length > MAX_LINE_BYTES {
        return Err(format!("line_too_long at the frame: {length} bytes, at most {MAX_LINE_BYTES} are read"));
    }
    let text =
        std::str::from_utf8(line).map_err(|error| format!("not_utf8 at the frame: {error}, a text frame is UTF-8"))?;
    resend(link, text).map_err(|error| error.to_string())
}

fn resend(link: Link, text: &str) -> Result<String, DecodeError> {
    Ok(match link {
        Link::FacilitatorToValidator => FacilitatorToValidator::decode(text)?.encode(),
        Link::ValidatorToFacilitator => ValidatorToFacilitator::decode(text)?.encode(),
        Link::ValidatorToMiner => ValidatorToMiner::decode(text)?.encode(),
        Link::MinerToValidator => MinerToValidator::decode(text)?.encode(),
        Link::ExecutorToMiner => ExecutorToMiner::decode(text)?.encode(),
        Link::MinerToExecutor => MinerToExecutor::decode(text)?.encode(),
    })
}

/// Reads the next line into `line`, without its end, and gives its length; of a line that is too long only the
/// beginning is kept. `None` at the end of the input.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<usize>> {
    line.clear();
    // One byte more than a message may have, for the line feed behind it.
    let read = input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', line)?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(line.len()));
    }
    Ok(Some(line.len() + skip_line(input)?))
}

/// Passes over the rest of a line, a buffer at a time, and gives its length.
fn skip_line(input: &mut impl BufRead) -> io::Result<usize> {
    let mut skipped = 0;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let length = end.unwrap_or(buffer.len());
        input.consume(length + usize::from(end.is_some()));
        skipped += length;
        if end.is_some() || length == 0 {
            return Ok(skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: &str = r#"{"message_type":"V0Heartbeat"}"#;

    fn checked(link: Link, input: impl AsRef<[u8]>) -> (bool, Vec<String>) {
        let mut output = Vec::new();
        let all_ok = check(link, input.as_ref(), &mut output).unwrap();
        let output = String::from_utf8(output).unwrap();
        (all_ok, output.lines().map(str::to_owned).collect())
    }

    #[test]
    fn each_line_is_answered_with_a_line() {
        let input = format!(" {HEARTBEAT} \r\n\nPING\n{{\"message_type\":\"V0AuthenticationRequest\"}}\n{HEARTBEAT}");
        let (all_ok, lines) = checked(Link::ValidatorToFacilitator, input);
        assert!(!all_ok);
        let expected = [
            "ok\t{\"message_type\":\"V0Heartbeat\"}",
            "error\tjson_invalid at the frame: Invalid JSON: EOF while parsing a value at line 1 column 0",
            "error\tjson_invalid at the frame: Invalid JSON: expected value at line 1 column 1",
            "error\tmissing at V0AuthenticationRequest.public_key: Field required; missing at \
             V0AuthenticationRequest.signature: Field required",
            "ok\t{\"message_type\":\"V0Heartbeat\"}",
        ];
        assert_eq!(lines, expected);
        assert!(checked(Link::ValidatorToFacilitator, HEARTBEAT).0);
        assert_eq!(checked(Link::ValidatorToFacilitator, ""), (true, vec![]));
    }

    #[test]
    fn a_message_is_printed_as_it_would_be_sent() {
        let cheated = r#"{"message_type":"V0JobCheated","job_uuid":"ż","trusted_job_uuid":"","details":1e-7}"#;
        let (all_ok, lines) = checked(Link::FacilitatorToValidator, cheated);
        assert!(all_ok);
        let sent = r#"{"signature": null, "type": "job.cheated", "message_type": "V0JobCheated", "#;
        let rest = r#""job_uuid": "\u017c", "trusted_job_uuid": "", "details": 1e-07}"#;
        assert_eq!(lines, [format!("ok\t{sent}{rest}")]);
    }

    #[test]
    fn a_line_that_is_no_text_is_refused_and_the_next_one_read() {
        let input = [b"{\"\xff\":1}\n".as_slice(), HEARTBEAT.as_bytes()].concat();
        let (all_ok, lines) = checked(Link::ValidatorToFacilitator, input);
        assert!(!all_ok);
        assert!(lines[0].starts_with("error\tnot_utf8 at the frame: "), "{}", lines[0]);
        assert!(lines[1].starts_with("ok\t"));
    }

    #[test]
    fn a_line_is_read_up_to_its_limit_only() {
        let mut input = vec![b' '; MAX_LINE_BYTES - HEARTBEAT.len()];
        input.extend(HEARTBEAT.as_bytes());
        input.push(b'\n');
        input.extend(vec![b'x'; MAX_LINE_BYTES + 100_000]);
        input.push(b'\n');
        input.extend(HEARTBEAT.as_bytes());
        let (all_ok, lines) = checked(Link::ValidatorToFacilitator, input);
        assert!(!all_ok);
        let too_long = "error\tline_too_long at the frame: 67208864 bytes, at most 67108864 are read";
        assert_eq!(lines[1], too_long);
        assert!(lines[0].starts_with("ok\t") && lines[2].starts_with("ok\t"), "{lines:?}");
    }

    #[test]
    fn reasons_stay_on_one_line() {
        let (_, lines) = checked(Link::MinerToValidator, r#"{"message_type":"a\tb\nc\u2028"}"#);
        assert_eq!(lines.len(), 1);
        let expected = "error\tunion_tag_invalid at the frame: Input tag 'a\\tb\\nc";
        assert!(lines[0].starts_with(expected), "{}", lines[0]);
    }

    #[test]
    fn output_that_fails_ends_the_check() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = check(Link::MinerToValidator, b"{}\n".as_slice(), Closed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn links_are_named_as_in_the_contract() {
        let names: Vec<_> =
            Link::value_variants().iter().map(|link| link.to_possible_value().unwrap().get_name().to_owned()).collect();
        let contract = [
            "facilitator-to-validator",
            "validator-to-facilitator",
            "validator-to-miner",
            "miner-to-validator",
            "executor-to-miner",
            "miner-to-executor",
        ];
        assert_eq!(names, contract);
    }
}
