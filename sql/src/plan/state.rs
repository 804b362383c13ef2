//! DataFusion's session state, made once per engine and cloned per statement.

use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::prelude::SessionConfig;

use crate::Result;
use crate::door::EngineOptions;

/// The state every statement starts from.
pub(crate) fn base_state(options: &EngineOptions) -> Result<SessionState> {
    let partitions = options
        .target_partitions
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_batch_size(options.batch_size)
        .with_collect_statistics(true)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false);
    let settings = config.options_mut();
    settings.execution.time_zone = Some("UTC".to_owned());
    settings.sql_parser.parse_float_as_decimal = true;
    settings.sql_parser.map_string_types_to_utf8view = false;
    settings.sql_parser.default_null_ordering = "nulls_max".to_owned();
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(config)
        .with_runtime_env(Arc::new(environment(options)?))
        .with_physical_optimizer_rules(super::interrupt::physical_rules())
        .build();
    Ok(extend(state)?)
}

fn environment(options: &EngineOptions) -> Result<RuntimeEnv> {
    let disk = match &options.spill_folder {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![folder.clone()]))
        }
        None => DiskManagerBuilder::default(),
    };
    Ok(RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(options.memory_limit)))
        .with_disk_manager_builder(disk.with_max_temp_directory_size(options.spill_limit))
        .build()?)
}

/// Adds our functions, types and operators.
fn extend(mut state: SessionState) -> datafusion::error::Result<SessionState> {
    crate::functions::register(&mut state)?;
    let _: &dyn FunctionRegistry = &state;
    Ok(state)
}

/// Maps SQL type names.
pub(super) fn type_planner() -> Option<Arc<dyn TypePlanner>> {
    Some(crate::types::type_planner())
}
