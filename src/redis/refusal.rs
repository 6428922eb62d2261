//! Which right is missing: Redis says that one is, but not always for which command and key. Pure.

use super::error::RedisError;

/// What Redis says where a script may not do something; Redis 7.0 with another code than `NOPERM`.
const WITHIN_SCRIPTS: [&str; 2] = ["user executing the script can't", "ACL failure in script"];

/// What is in an error that names command and key.
const NAMED: &str = " in a script, on ";

/// Bytes of a word that are shown.
const WORD_BYTES: usize = 128;

/// The error of the `at`th of some packed commands, with what was refused, if a right is missing; `script` is the text
/// that the command calls.
pub(super) fn of_command(error: RedisError, packed: &[u8], at: usize, script: Option<&str>) -> RedisError {
    if let Some(text) = script {
        let words = words(packed, at);
        let count = words.get(2).and_then(|count| count.parse().ok()).unwrap_or(0);
        return of_script(error, text, words.get(3..3 + count).unwrap_or_default());
    }
    if !error.is_server("NOPERM") {
        return error;
    }
    match &words(packed, at)[..] {
        [] => error,
        [command] => with(error, &format!("command {command}")),
        [command, first, ..] => with(error, &format!("command {command} on {first:?}")),
    }
}

/// The error of a script, with the command in it that was refused and its keys, if a right is missing.
pub(crate) fn of_script(error: RedisError, text: &str, keys: &[String]) -> RedisError {
    let message = match &error {
        // The script has asked by itself, before its first change.
        RedisError::Server { message, .. } if message.contains(NAMED) => return error,
        RedisError::Server { code, message } if code == "NOPERM" || is_within_script(message) => message,
        _ => return error,
    };
    // Redis counts lines from 1.
    let line = message.split_once("user_script:").and_then(|(_, rest)| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        text.lines().nth(rest[..digits].parse::<usize>().ok()?.checked_sub(1)?)
    });
    let shown = |keys: Vec<&String>| keys.iter().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ");
    let what = match line {
        None => format!("a script with the keys {}", shown(keys.iter().collect())),
        Some(line) => {
            let is_named = |(at, _): &(usize, &String)| line.contains(&format!("KEYS[{}]", at + 1));
            let named: Vec<_> = keys.iter().enumerate().filter(is_named).map(|(_, key)| key).collect();
            let of = if named.is_empty() { shown(keys.iter().collect()) } else { shown(named) };
            format!("command {}{NAMED}{of}", commands(line))
        }
    };
    with(error, &what)
}

fn is_within_script(message: &str) -> bool {
    WITHIN_SCRIPTS.iter().any(|words| message.contains(words))
}

fn with(error: RedisError, what: &str) -> RedisError {
    match error {
        RedisError::Server { message, .. } => {
            RedisError::Server { code: "NOPERM".to_owned(), message: format!("{message}: {what}") }
        }
        other => other,
    }
}

/// The names of commands in a line of a script: what is quoted in capitals.
fn commands(line: &str) -> String {
    let is_name = |part: &&str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase());
    line.split('\'').skip(1).step_by(2).filter(is_name).collect::<Vec<_>>().join(" or ")
}

/// The beginnings of the words of one of some packed commands.
fn words(packed: &[u8], at: usize) -> Vec<String> {
    let (mut place, mut found) = (0, Vec::new());
    for command in 0..=at {
        for _ in 0..number(packed, &mut place, '*').unwrap_or(0) {
            let Some(length) = number(packed, &mut place, '$') else { return found };
            if command == at {
                let bytes = packed.get(place..place + length.min(WORD_BYTES)).unwrap_or_default();
                found.push(String::from_utf8_lossy(bytes).into_owned());
            }
            place += length + 2;
        }
    }
    found
}

/// A number behind its sign, to the end of its line.
fn number(packed: &[u8], place: &mut usize, sign: char) -> Option<usize> {
    let rest = packed.get(*place..)?;
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    let number = std::str::from_utf8(&rest[..end]).ok()?.strip_prefix(sign)?.parse().ok()?;
    *place += end + 2;
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, message: &str) -> RedisError {
        RedisError::Server { code: code.to_owned(), message: message.to_owned() }
    }

    #[test]
    fn a_refused_command_is_named_with_its_key() {
        let mut packed = redis::cmd("GET").arg("a").get_packed_command();
        packed.extend(redis::cmd("HSET").arg("my key").arg("f").arg("").get_packed_command());
        packed.extend(redis::cmd("PING").get_packed_command());
        let refused = |at| of_command(server("NOPERM", "no"), &packed, at, None).to_string();
        assert_eq!(refused(0), "Redis says NOPERM no: command GET on \"a\"");
        assert_eq!(refused(1), "Redis says NOPERM no: command HSET on \"my key\"");
        assert_eq!(refused(2), "Redis says NOPERM no: command PING");
        assert_eq!(of_command(server("OOM", "no"), &packed, 0, None).to_string(), "Redis says OOM no");
    }

    #[test]
    fn the_line_of_a_script_names_what_it_was_refused() {
        let text = "\nlocal x = 1\nredis.call(x and 'RPUSH' or 'LPUSH', KEYS[2], 'y')\nredis.call('TIME')";
        let keys = ["a".to_owned(), "b".to_owned()];
        let refused = |code: &str, message: &str| of_script(server(code, message), text, &keys).to_string();
        let message = "The user executing the script can't access … script: 12ab, on @user_script:3.";
        let shown = format!("Redis says NOPERM {message}: command RPUSH or LPUSH in a script, on \"b\"");
        assert_eq!(refused("ERR", message), shown);
        assert!(refused("ERR", &message.replace(":3.", ":4.")).ends_with("command TIME in a script, on \"a\", \"b\""));
        assert!(refused("NOPERM", "no").ends_with("no: a script with the keys \"a\", \"b\""));
        assert_eq!(refused("ERR", "wrong"), "Redis says ERR wrong");
        let by_itself = "a right is missing: command HSET in a script, on \"a\" script: 12ab, on @user_script:3.";
        assert_eq!(refused("NOPERM", by_itself), format!("Redis says NOPERM {by_itself}"));
        let packed = redis::cmd("EVALSHA").arg("12ab").arg(2).arg("a").arg("b").arg("x").get_packed_command();
        assert_eq!(of_command(server("ERR", message), &packed, 0, Some(text)).to_string(), shown);
    }
}
