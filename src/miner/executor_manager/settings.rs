//! What the miner's settings tell its executors. Pure.

use crate::protocol::ExecutorClass;

/// The variable by which an executor knows its token. Nothing that it starts has it.
pub(super) const TOKEN: &str = "EXECUTOR_TOKEN";

/// Environment variables of executors. They are those of the flags of `phalanx executor`, so that each has one check
/// and one help text, and another program that stands for an executor does not stumble over them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutorSettings(Vec<(Option<ExecutorClass>, &'static str, String)>);

impl ExecutorSettings {
    /// Sets a variable for all executors.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.0.push((None, name, value.into()));
    }

    /// Sets a variable for the executors of one class.
    pub fn set_for(&mut self, class: ExecutorClass, name: &'static str, value: impl Into<String>) {
        self.0.push((Some(class), name, value.into()));
    }

    /// Sets these too.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// The variables of an executor of this class.
    pub(super) fn of(&self, class: &ExecutorClass) -> impl Iterator<Item = (&'static str, &str)> {
        let meant = move |of: &Option<ExecutorClass>| of.as_ref().is_none_or(|of| of == class);
        self.0.iter().filter(move |(of, ..)| meant(of)).map(|(_, name, value)| (*name, value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_what_all_have_and_its_own() {
        let mut settings = ExecutorSettings::default();
        settings.set("PHALANX_REACH", "127.0.0.0/8");
        settings.set_for(ExecutorClass::AlwaysOnTest, "PHALANX_SANDBOX", "{}");
        let of = |class| settings.of(&class).collect::<Vec<_>>();
        assert_eq!(of(ExecutorClass::AlwaysOnTest), [("PHALANX_REACH", "127.0.0.0/8"), ("PHALANX_SANDBOX", "{}")]);
        assert_eq!(of(ExecutorClass::AlwaysOnGpu24gb), [("PHALANX_REACH", "127.0.0.0/8")]);
    }
}
