//! The tasks that call others, or put others in their own place.

use phalanx::celery::worker::{TaskCx, TaskError};
use phalanx::celery::{Canvas, Task};
use serde_json::{Value, json};

use super::{Ask, MODULE, Tasks, or};

/// One of the tasks there, to be called.
fn task(name: &str, args: Value) -> Canvas {
    Task::new(format!("{MODULE}.{name}")).args(args).into()
}

fn add(args: Value) -> Canvas {
    task("add", args)
}

/// What `replace_with_chain` and its like call at the end.
fn echo(message: &Value) -> Canvas {
    match message {
        Value::Null => task("redis_echo", json!([])),
        message => task("redis_echo", json!([message])).immutable(),
    }
}

pub fn register(tasks: &mut Tasks, ask: &Ask) {
    tasks.add("add_replaced", |cx, args| Err(cx.replace(add(args.positional.into()))));
    tasks.add("add_replaced_with_chain", |cx, args| {
        Err(cx.replace(add(args.positional.into()).then(task("identity", json!([])))))
    });
    tasks.add("add_to_all", |cx, args| {
        let (numbers, value) = (args.get::<Vec<Value>>(0, "nums")?, args.get::<Value>(1, "val")?);
        Err(cx.replace(Canvas::group(numbers.iter().map(|number| add(json!([number, value]))))))
    });
    tasks.add("fail_replaced", |cx, args| Err(cx.replace(task("fail", args.positional.into()).immutable())));
    tasks.add("replace_with_chain", |cx, args| {
        let message = or(&args, usize::MAX, "link_msg", Value::Null)?;
        let chain = task("identity", args.positional.into()).then(task("identity", json!([])));
        Err(cx.replace(chain.link(echo(&message))))
    });
    tasks.add("replace_with_chain_which_raises", |cx, args| {
        let message = or(&args, usize::MAX, "link_msg", Value::Null)?;
        let chain = task("identity", args.positional.into()).then(task("raise_error", json!([])));
        Err(cx.replace(chain.link_error(echo(&message))))
    });
    tasks.add("replace_with_empty_chain", |cx, _| Err(cx.replace(Canvas::chain(Vec::<Canvas>::new()))));
    tasks.add("replace_with_chain_which_contains_a_group", |cx, _| {
        Err(cx.replace(add(json!([1, 2])).then(Canvas::group([add(json!([1])), add(json!([1]))]))))
    });
    tasks.add("replace_with_stamped_task", |cx, args| {
        let given = or(&args, 0, "replace_with", Value::Null)?;
        let canvas = match given {
            Value::Null => task("replaced_with_me", json!([])),
            given => Canvas::read(&given).map_err(|why| TaskError::new("ValueError", why))?,
        };
        Err(cx.replace(canvas.stamp("StampOnReplace", "This is the replaced task")))
    });
    tasks.add("record_replaced_task_nesting", |cx, args| {
        let replacements = args.get::<u32>(0, "replacements")?;
        let mut nesting: Vec<i64> = or(&args, 1, "nesting", Vec::new())?;
        nesting.push(cx.message().replaced_task_nesting);
        match replacements.checked_sub(1) {
            None => Ok(json!(nesting)),
            Some(left) => Err(cx.replace(task("record_replaced_task_nesting", json!([left, nesting])))),
        }
    });
    second_order(tasks, ask);
    signatures(tasks);
}

/// Tasks that replace themselves by chains with themselves at the end.
fn second_order(tasks: &mut Tasks, ask: &Ask) {
    for (name, letter, next) in [
        ("second_order_replace1", "A", task("second_order_replace2", json!([]))),
        ("second_order_replace2", "B", task("redis_echo", json!(["In/Out C"]))),
    ] {
        let ask = ask.clone();
        tasks.add(name, move |cx: &TaskCx, args| {
            let is_second = or(&args, 0, "state", false)?;
            let word = if is_second { "Out" } else { "In" };
            ask.push("redis-echo", &format!("{word} {letter}"))?;
            if is_second {
                return Ok(Value::Null);
            }
            let again: Canvas = Task::new(format!("{MODULE}.{name}")).kwarg("state", true).into();
            Err(cx.replace(next.clone().then(again.immutable())))
        });
    }
}

/// Signatures as results, and read from arguments.
fn signatures(tasks: &mut Tasks) {
    let one = || add(json!([]));
    let chord = || Canvas::chord(Canvas::group([one()]), one());
    for (name, canvas) in [
        ("chain_chain", Canvas::chain([Canvas::chain([one()])])),
        ("chain_group", Canvas::chain([Canvas::group([one()])])),
        ("chain_chord", Canvas::chain([chord()])),
        ("group_chain", Canvas::group([Canvas::chain([one()])])),
        ("group_group", Canvas::group([Canvas::group([one()])])),
        ("group_chord", Canvas::group([chord()])),
        ("chord_chain", Canvas::chord(Canvas::chain([one()]), one())),
        ("chord_group", Canvas::chord(Canvas::group([one()]), one())),
        ("chord_chord", Canvas::chord(chord(), one())),
    ] {
        let written = canvas.write();
        tasks.add(&format!("return_nested_signature_{name}"), move |_, _| Ok(written.clone()));
    }
    tasks.add("rebuild_signature", |_, args| match Canvas::read(&args.get::<Value>(0, "sig_dict")?) {
        Ok(_) => Ok(Value::Null),
        Err(why) => Err(TaskError::new("TypeError", why)),
    });
}
