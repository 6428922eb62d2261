//! The JSON schema of job files, for editors and for programs that write them. Pure.
//!
//! It says no more than [`load`](super::load) holds: what is right by it may still be too large, or name a file that is
//! not there.

use serde_json::{Map, Value, json};

use super::TIME_LIMITS;
use crate::protocol::ExecutorClass;

/// The schema (JSON Schema, draft 2020-12).
pub fn schema() -> Value {
    let mut properties = Map::new();
    let mut add = |key: &str, mut value: Value, what: &str| {
        value["description"] = what.into();
        properties.insert(key.to_owned(), value);
    };
    let classes: Vec<&str> = ExecutorClass::ALL.iter().map(|class| class.as_str()).collect();
    add("executor_class", json!({"enum": classes}), "The class of machine that the job runs on.");
    add("docker_image", json!({"type": "string", "minLength": 1}), "The image of the job's container.");
    let texts = json!({"type": "array", "items": {"type": "string"}});
    add("args", texts.clone(), "The command in the container.");
    add("command", texts, "Another name of args.");
    add("env", text_map(), "Environment variables of the command.");
    let name = json!({"type": "object", "additionalProperties": {"anyOf": [
        {"type": "string"},
        object(&[("base64", text())], &["base64"]),
        object(&[("path", text())], &["path"]),
    ]}});
    add("files", name, "Small files by their path under /volume/: a text, base64, or a file beside the job file.");
    add("volume", maybe(volume()), "Larger inputs, unpacked under /volume/ after files.");
    add("output_upload", maybe(upload()), "Where what is under /output/ goes.");
    add("artifacts_dir", maybe(text()), "A folder of the container whose files come back with the result.");
    for (key, default) in TIME_LIMITS {
        let what = match key {
            "download_time_limit" => "Seconds for files and volumes.",
            "execution_time_limit" => "Seconds for the command.",
            "upload_time_limit" => "Seconds for the uploads.",
            _ => "Seconds until the server of a streaming job is ready.",
        };
        add(key, json!({"type": "integer", "minimum": 0, "default": default}), what);
    }
    let client = object(&[("public_key", text()), ("executor_ip", maybe(text()))], &["public_key"]);
    add("streaming_details", maybe(client), "Makes it a streaming job: public_key is the client's certificate (PEM).");
    add("use_gpu", json!({"type": "boolean", "default": false}), "Without effect.");
    let trusted = json!({"type": "boolean", "default": false});
    add("on_trusted_miner", trusted, "Run it on the validator's own miner.");
    add("job_namespace", maybe(text()), "A text to file it under, as SN1.0.");
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job file of phalanx",
        "type": "object",
        "properties": properties,
        "required": ["executor_class", "docker_image"],
        "additionalProperties": false,
        "not": {"required": ["args", "command"]},
    })
}

fn text() -> Value {
    json!({"type": "string"})
}

fn text_map() -> Value {
    json!({"type": "object", "additionalProperties": {"type": "string"}})
}

/// The value or null.
fn maybe(value: Value) -> Value {
    json!({"anyOf": [value, {"type": "null"}]})
}

fn object(properties: &[(&str, Value)], required: &[&str]) -> Value {
    let properties: Map<String, Value> =
        properties.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// An object of one kind, which a field tells.
fn kind(tag: &str, name: &str, properties: &[(&str, Value)], required: &[&str]) -> Value {
    let tagged: Vec<(&str, Value)> =
        std::iter::once((tag, json!({"const": name}))).chain(properties.iter().cloned()).collect();
    let required: Vec<&str> = std::iter::once(tag).chain(required.iter().copied()).collect();
    object(&tagged, &required)
}

fn volume() -> Value {
    let volume =
        |name: &str, properties: &[(&str, Value)], required: &[&str]| kind("volume_type", name, properties, required);
    let path = ("relative_path", maybe(text()));
    let patterns = json!({"anyOf": [text(), {"type": "array", "items": text()}, {"type": "null"}]});
    let of_hub = [
        ("repo_id", text()),
        ("repo_type", maybe(text())),
        ("revision", maybe(text())),
        path.clone(),
        ("allow_patterns", patterns),
        ("token", maybe(text())),
    ];
    let single = vec![
        volume("inline", &[("contents", text()), path.clone()], &["contents"]),
        volume("zip_url", &[("contents", text()), path], &["contents"]),
        volume("single_file", &[("url", text()), ("relative_path", text())], &["url", "relative_path"]),
        volume("huggingface_volume", &of_hub, &["repo_id"]),
    ];
    let parts = json!({"type": "array", "items": {"anyOf": single}});
    let several = volume("multi_volume", &[("volumes", parts)], &["volumes"]);
    json!({"anyOf": single.into_iter().chain([several]).collect::<Vec<_>>()})
}

fn upload() -> Value {
    let upload = |name: &str, properties: &[(&str, Value)], required: &[&str]| {
        kind("output_upload_type", name, properties, required)
    };
    let (url, form) = (("url", text()), ("form_fields", maybe(text_map())));
    let (path, headers) = (("relative_path", text()), ("signed_headers", maybe(text_map())));
    let file = ["url", "relative_path"];
    let single = vec![
        upload("single_file_post", &[url.clone(), form.clone(), path.clone(), headers.clone()], &file),
        upload("single_file_put", &[url.clone(), path, headers], &file),
    ];
    let parts = json!({"type": "array", "items": {"anyOf": single}});
    let rest = [
        upload("zip_and_http_post", &[url.clone(), form], &["url"]),
        upload("zip_and_http_put", &[url], &["url"]),
        upload("multi_upload", &[("uploads", parts), ("system_output", json!({"type": "null"}))], &["uploads"]),
    ];
    json!({"anyOf": single.into_iter().chain(rest).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::super::parse_text;
    use super::*;

    /// Whether a value is right by a schema that uses no more than those above.
    fn is_right(schema: &Value, value: &Value) -> bool {
        schema.as_object().unwrap().iter().all(|(word, by)| match word.as_str() {
            "type" => match by.as_str().unwrap() {
                "string" => value.is_string(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                "null" => value.is_null(),
                other => panic!("type {other}"),
            },
            "enum" => by.as_array().unwrap().contains(value),
            "const" => by == value,
            "minLength" => value.as_str().is_none_or(|text| text.len() as u64 >= by.as_u64().unwrap()),
            "minimum" => value.as_i64().is_none_or(|number| number >= by.as_i64().unwrap()),
            "items" => value.as_array().is_none_or(|items| items.iter().all(|item| is_right(by, item))),
            "anyOf" => by.as_array().unwrap().iter().any(|schema| is_right(schema, value)),
            "not" => !is_right(by, value),
            "required" => by.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
            "properties" => by
                .as_object()
                .unwrap()
                .iter()
                .all(|(key, schema)| value.get(key).is_none_or(|value| is_right(schema, value))),
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                let others = value.as_object().into_iter().flatten();
                let mut others = others.filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)));
                match by {
                    Value::Bool(allowed) => *allowed || others.next().is_none(),
                    by => others.all(|(_, value)| is_right(by, value)),
                }
            }
            "description" | "default" | "title" | "$schema" => true,
            other => panic!("{other} is not looked at"),
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut job = json!({"executor_class": "always_on.test", "docker_image": "busybox"});
        job[key] = value;
        job
    }

    #[test]
    fn it_takes_what_the_parser_takes_and_refuses_what_that_refuses() {
        let schema = schema();
        let single = json!({"output_upload_type": "single_file_put", "url": "http://h/o", "relative_path": "o"});
        let inline = json!({"volume_type": "inline", "contents": "UEsFBg=="});
        let zip = json!({"output_upload_type": "zip_and_http_post", "url": "http://h", "form_fields": {"a": "b"}});
        let multi = |uploads: Value| json!({"output_upload_type": "multi_upload", "uploads": uploads});
        let hub = json!({"volume_type": "huggingface_volume", "repo_id": "o/m", "allow_patterns": ["*.json"]});
        for (key, value) in [
            ("args", json!(["a", ""])),
            ("args", json!("a")),
            ("args", json!([1])),
            ("command", json!(["a"])),
            ("env", json!({"A": "b"})),
            ("env", json!({"A": 1})),
            ("files", json!({"a/b": "text", "c": {"base64": "AP8="}})),
            ("files", json!({"a": {"base64": 1}})),
            ("files", json!({"a": {"base64": "AP8=", "path": "x"}})),
            ("files", json!([])),
            ("volume", json!(null)),
            ("volume", inline.clone()),
            ("volume", hub.clone()),
            ("volume", json!({"volume_type": "multi_volume", "volumes": [inline, hub]})),
            ("volume", json!({"volume_type": "other", "contents": ""})),
            ("volume", json!({"volume_type": "zip_url"})),
            ("volume", json!({"volume_type": "zip_url", "contents": "http://h", "surprise": 1})),
            ("output_upload", single.clone()),
            ("output_upload", zip.clone()),
            ("output_upload", multi(json!([single]))),
            ("output_upload", multi(json!([zip]))),
            ("output_upload", json!({"output_upload_type": "zip_and_http_put"})),
            ("artifacts_dir", json!("/a")),
            ("artifacts_dir", json!(1)),
            ("execution_time_limit", json!(5)),
            ("execution_time_limit", json!(-5)),
            ("execution_time_limit", json!("5")),
            ("execution_time_limit", json!(null)),
            ("streaming_details", json!({"public_key": "PEM"})),
            ("streaming_details", json!({})),
            ("use_gpu", json!(true)),
            ("on_trusted_miner", json!([])),
            ("job_namespace", json!("SN1.0")),
            ("job_namespace", json!(7)),
            ("docker_image", json!("")),
            ("docker_image", json!(null)),
            ("executor_class", json!("always_on.cpu.8c.16gb")),
            ("executor_class", json!("always_on")),
            ("surprise", json!(1)),
        ] {
            let job = with(key, value);
            let parsed = parse_text("job", &job.to_string());
            assert_eq!(is_right(&schema, &job), parsed.is_ok(), "{job}: {parsed:?}");
        }
        for job in [json!([]), json!({}), json!({"docker_image": "a"}), with("args", json!([])), {
            let mut both = with("args", json!([]));
            both["command"] = json!([]);
            both
        }] {
            assert_eq!(is_right(&schema, &job), parse_text("job", &job.to_string()).is_ok(), "{job}");
        }
    }

    #[test]
    fn it_names_every_key_of_the_parser() {
        use super::super::{AS_ON_THE_WIRE, OTHERS};
        let schema = schema();
        let mut named: Vec<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut known: Vec<&str> =
            TIME_LIMITS.iter().map(|(key, _)| *key).chain(AS_ON_THE_WIRE).chain(OTHERS).collect();
        named.sort_unstable();
        known.sort_unstable();
        assert_eq!(named, known);
    }
}
