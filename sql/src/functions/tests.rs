//! Functions and operators against PostgreSQL's answers, through the planner.
