//! `task_routes`: the queue and the priority of tasks by their names. Pure.

use serde_json::{Map, Value, json};

use crate::base::glob;
use crate::celery::keys::PRIORITY_MAX;

/// Where a task goes that does not say it itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// The queue.
    pub queue: Option<String>,
    /// The priority, from 0 to 9.
    pub priority: Option<u8>,
}

/// Routes by the names of tasks, as `task_routes` has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes(Vec<Router>);

/// One of several that are asked in turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Router {
    /// Names and patterns, in their order.
    routes: Vec<(String, Route)>,
}

impl Router {
    /// A name that is written out goes before all patterns.
    fn of(&self, task: &str) -> Option<&Route> {
        let named = self.routes.iter().find(|(name, _)| name == task && !is_pattern(name));
        let found = named
            .or_else(|| self.routes.iter().find(|(pattern, _)| is_pattern(pattern) && glob::matches(pattern, task)));
        found.map(|(_, route)| route)
    }
}

/// Celery looks for a star alone.
fn is_pattern(name: &str) -> bool {
    name.contains('*')
}

impl Routes {
    /// One more for tasks of a name, or of a pattern with a `*` in it, as `feed.*`. Of patterns the first one counts.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, route: Route) -> Self {
        if self.0.is_empty() {
            self.0.push(Router::default());
        }
        if let Some(last) = self.0.last_mut() {
            last.routes.push((name.into(), route));
        }
        self
    }

    /// The route of a task.
    pub fn of(&self, task: &str) -> Option<&Route> {
        self.0.iter().find_map(|router| router.of(task))
    }

    /// What stands in the settings: an object of names and routes, or a list of such objects, each of which may also be
    /// a list of pairs.
    pub(super) fn read(value: &Value) -> Result<Self, String> {
        let routers = match value {
            Value::Null => return Ok(Self::default()),
            Value::Array(routers) => routers.iter().map(router).collect::<Result<_, _>>()?,
            one => vec![router(one)?],
        };
        Ok(Self(routers))
    }

    /// As it is written.
    pub(super) fn shown(&self) -> Value {
        let route = |route: &Route| json!({"queue": route.queue, "priority": route.priority});
        let pairs =
            |router: &Router| router.routes.iter().map(|(name, to)| json!([name, route(to)])).collect::<Value>();
        self.0.iter().map(pairs).collect()
    }

    pub(super) fn problem(&self) -> Option<String> {
        let mut all = self.0.iter().flat_map(|router| &router.routes);
        all.find_map(|(name, route)| match route {
            Route { queue: Some(queue), .. } if queue.is_empty() => {
                Some(format!("{name:?} has a queue without a name"))
            }
            Route { priority: Some(priority), .. } if *priority > PRIORITY_MAX => {
                Some(format!("{name:?} has the priority {priority}; give one from 0 to {PRIORITY_MAX}"))
            }
            _ => None,
        })
    }
}

fn router(value: &Value) -> Result<Router, String> {
    let pair = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([Value::String(name), to]) => Ok((name.clone(), route(name, to)?)),
        _ => Err(format!("{value} is no pair of a name and a route")),
    };
    let routes: Result<Vec<_>, String> = match value {
        Value::Object(routes) => routes.iter().map(|(name, to)| Ok((name.clone(), route(name, to)?))).collect(),
        Value::Array(pairs) => pairs.iter().map(pair).collect(),
        other => Err(format!("{other} is no object of names and routes; a router in Python cannot be asked")),
    };
    Ok(Router { routes: routes? })
}

fn route(name: &str, value: &Value) -> Result<Route, String> {
    let options: &Map<String, Value> = match value {
        Value::String(queue) => return Ok(Route { queue: Some(queue.clone()), priority: None }),
        Value::Object(options) => options,
        other => return Err(format!("the route of {name:?} is {other}; give {{\"queue\": …}}")),
    };
    let mut route = Route::default();
    for (key, value) in options {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("queue", Value::String(queue)) => route.queue = Some(queue.clone()),
            ("priority", value) if value.as_u64().is_some_and(|priority| priority <= PRIORITY_MAX.into()) => {
                route.priority = value.as_u64().and_then(|priority| u8::try_from(priority).ok());
            }
            (key, value) => {
                return Err(format!("the route of {name:?} has {key}: {value}; a queue and a priority are understood"));
            }
        }
    }
    Ok(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_before_patterns_and_a_router_before_the_next() {
        let routes = json!([
            {"feed.*": "feeds", "feed.one": {"queue": "one", "priority": 3}, "*.slow": {"queue": "slow"}},
            [["feed.*", "never"], ["*", {"priority": 9}]],
        ]);
        let routes = Routes::read(&routes).unwrap();
        let of = |task: &str| routes.of(task).map(|route| (route.queue.as_deref(), route.priority)).unwrap();
        assert_eq!(of("feed.one"), (Some("one"), Some(3)));
        assert_eq!(of("feed.slow"), (Some("feeds"), None), "the first pattern counts");
        assert_eq!(of("other.slow"), (Some("slow"), None));
        assert_eq!(of("other"), (None, Some(9)));
        assert_eq!(Routes::read(&routes.shown()).unwrap(), routes);
        assert_eq!(Routes::read(&Value::Null).unwrap().of("x"), None);
        let made = Routes::default().with("a", Route { queue: Some("b".to_owned()), priority: None });
        assert_eq!(made, Routes::read(&json!({"a": "b"})).unwrap());
    }

    #[test]
    fn a_route_that_is_not_understood_is_told() {
        for (routes, why) in [
            (json!({"a": {"exchange": "e"}}), "exchange: \"e\"; a queue and a priority are understood"),
            (json!({"a": {"priority": 10}}), "priority: 10"),
            (json!({"a": 1}), "the route of \"a\" is 1"),
            (json!("mine.Router"), "in Python cannot be asked"),
            (json!([["a", "b"]]), "\"a\" is no pair"),
        ] {
            let error = Routes::read(&routes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let empty = Routes::default().with("a", Route { queue: Some(String::new()), priority: None });
        assert!(empty.problem().unwrap().contains("without a name"));
    }
}
