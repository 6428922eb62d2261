//! Arguments as Celery shows them, for the log lines and tools of Celery. Pure.

use serde_json::{Map, Value};

use super::value::{self, Python};

/// Characters of a shown argument list or map; Celery's own default.
const CHARS: usize = 1024;

/// Containers inside one another that are shown; Celery's own default.
const LEVELS: usize = 3;

/// Positional arguments as a tuple: `(1, 'a')`.
pub(super) fn args(args: &[Value]) -> String {
    let mut text = Shown::default();
    text.put("(");
    text.list(args, 1);
    text.put(if args.len() == 1 { ",)" } else { ")" });
    text.finish()
}

/// Keyword arguments: `{'a': None}`.
pub(super) fn kwargs(kwargs: &Map<String, Value>) -> String {
    let mut text = Shown::default();
    text.map(kwargs, 1);
    text.finish()
}

/// A result: `{'a': [1, None]}`.
pub(super) fn value(value: &Value) -> String {
    let mut text = Shown::default();
    text.value(value, 0);
    text.finish()
}

/// A call, as Python shows an exception: `ValueError('no', 7)`.
pub(super) fn call(name: &str, args: &[Value]) -> String {
    let mut text = Shown::default();
    text.put(name);
    text.put("(");
    text.list(args, 1);
    text.put(")");
    text.finish()
}

#[derive(Default)]
struct Shown {
    text: String,
    chars: usize,
}

impl Shown {
    fn full(&self) -> bool {
        self.chars >= CHARS
    }

    fn put(&mut self, text: &str) {
        for c in text.chars().take(CHARS.saturating_sub(self.chars)) {
            self.text.push(c);
            self.chars += 1;
        }
    }

    fn finish(mut self) -> String {
        if self.full() {
            self.text.push_str("...");
        }
        self.text
    }

    fn list(&mut self, items: &[Value], level: usize) {
        for (at, item) in items.iter().enumerate() {
            if self.full() {
                return;
            }
            if at > 0 {
                self.put(", ");
            }
            self.value(item, level);
        }
    }

    fn map(&mut self, map: &Map<String, Value>, level: usize) {
        self.put("{");
        for (at, (key, value)) in map.iter().enumerate() {
            if self.full() {
                return;
            }
            if at > 0 {
                self.put(", ");
            }
            self.string(key);
            self.put(": ");
            self.value(value, level);
        }
        self.put("}");
    }

    fn value(&mut self, value: &Value, level: usize) {
        match value::python(value) {
            Some(Python::Float("NaN")) => return self.put("nan"),
            Some(Python::Float(name)) => return self.put(if name.starts_with('-') { "-inf" } else { "inf" }),
            Some(Python::Text(odd)) => return self.put(&format!("'{}'", odd.shown())),
            Some(Python::Mapping(_)) => return self.value(&value::plain(value.clone()), level),
            None => {}
        }
        match value {
            Value::Null => self.put("None"),
            Value::Bool(true) => self.put("True"),
            Value::Bool(false) => self.put("False"),
            Value::Number(number) => self.put(&number.to_string()),
            Value::String(text) => self.string(text),
            Value::Array(_) if level >= LEVELS => self.put("[...]"),
            Value::Object(_) if level >= LEVELS => self.put("{...}"),
            Value::Array(items) => {
                self.put("[");
                self.list(items, level + 1);
                self.put("]");
            }
            Value::Object(map) => self.map(map, level + 1),
        }
    }

    fn string(&mut self, text: &str) {
        // A longer text is truncated anyway.
        let shortened: String = text.chars().take(CHARS).collect();
        self.put(&format!("'{}'", shortened.replace('\'', "\\'")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(value: Value) -> String {
        args(value.as_array().unwrap())
    }

    #[test]
    fn it_looks_as_with_celery() {
        assert_eq!(shown(json!([])), "()");
        assert_eq!(shown(json!([1])), "(1,)");
        let mixed = json!([1, "it's", null, true, [false], 1.5]);
        assert_eq!(shown(mixed), r"(1, 'it\'s', None, True, [False], 1.5)");
        let odd = crate::celery::json::read(br#"[NaN, -Infinity, "caf\udce9", {"\udce9": 1}]"#).unwrap();
        assert_eq!(shown(odd), r"(nan, -inf, 'caf\udce9', {'�': 1})");
        assert_eq!(kwargs(json!({"a": {"b": "ü"}, "c": []}).as_object().unwrap()), "{'a': {'b': 'ü'}, 'c': []}");
    }

    #[test]
    fn results_and_exceptions_look_as_in_python() {
        assert_eq!(value(&json!({"a": [1, null]})), "{'a': [1, None]}");
        assert_eq!(value(&json!("x")), "'x'");
        assert_eq!(call("ValueError", &[json!("no"), json!(7)]), "ValueError('no', 7)");
        assert_eq!(call("KeyError", &[]), "KeyError()");
    }

    #[test]
    fn it_is_bounded_in_length_and_depth() {
        let long = shown(json!(["x".repeat(5000), 1]));
        assert!(long.chars().count() == CHARS + 3 && long.ends_with("x..."));
        assert!(shown(json!(vec![1; 5000])).chars().count() <= CHARS + 3);
        assert_eq!(shown(json!([[[[1]]]])), "([[[...]]],)");
    }
}
