//! Who acts.

use std::sync::Arc;

/// An authenticated user. There is no session without one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    name: Arc<str>,
    admin: bool,
}

impl Principal {
    /// The built-in administrator.
    pub fn admin() -> Self {
        Self { name: Arc::from("admin"), admin: true }
    }

    /// An ordinary user.
    pub fn user(name: &str) -> Self {
        Self { name: Arc::from(name), admin: false }
    }

    /// The name, as `current_user` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether file access, settings and other sessions are open to this user.
    pub fn is_admin(&self) -> bool {
        self.admin
    }
}
