//! The statements of LatticeSQL after parsing: what the rest of the crate executes.
//!
//! Expressions, queries, types and names stay sqlparser's; statements are ours. A sqlparser statement carries the clauses of a dozen
//! dialects, and whoever executes it can forget one; these structs carry exactly the clauses that are executed, because [`super::strict`]
//! builds them by taking sqlparser's apart field by field and refusing everything else.
//!
//! Statements of the specification whose execution comes later are [`Extension`]s: they parse, and are refused by [`Extension::name`].

use std::sync::Arc;

use sqlparser::ast::{
    DataType, Expr, Ident, ObjectName, OrderByExpr, Query, ReferentialAction, SelectItem, TableFactor, TableWithJoins,
    With,
};

/// One statement of a script.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Statement {
    /// The statement as it was written, without the semicolon, surrounding white space and surrounding comments.
    pub(crate) text: Arc<str>,
    /// Where `text` starts in the script, in characters from 1.
    pub(crate) position: usize,
    /// The number of the highest parameter (`$3` → 3); 0 without parameters.
    pub(crate) parameters: usize,
    /// What it says.
    pub(crate) kind: StatementAst,
}

/// What a statement says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StatementAst {
    /// `SELECT`, `VALUES`, `TABLE t`, `WITH … SELECT`.
    Query(Box<Query>),
    /// `INSERT`.
    Insert(Box<Insert>),
    /// `UPDATE`.
    Update(Box<Update>),
    /// `DELETE`.
    Delete(Box<Delete>),
    /// `MERGE`.
    Merge(Box<Merge>),
    /// `COPY`.
    Copy(Box<Copy>),
    /// `TRUNCATE`.
    Truncate(Truncate),
    /// `CREATE TABLE`.
    CreateTable(Box<CreateTable>),
    /// `CREATE TABLE … AS query`.
    CreateTableAs(Box<CreateTableAs>),
    /// `ALTER TABLE`.
    AlterTable(Box<AlterTable>),
    /// `CREATE SCHEMA`.
    CreateSchema(CreateSchema),
    /// `CREATE VIEW`.
    CreateView(Box<CreateView>),
    /// `CREATE INDEX`.
    CreateIndex(Box<CreateIndex>),
    /// `CREATE SEQUENCE`.
    CreateSequence(Box<CreateSequence>),
    /// `ALTER SEQUENCE`.
    AlterSequence(Box<AlterSequence>),
    /// `ALTER { VIEW | INDEX | SEQUENCE | SCHEMA } … RENAME TO …`.
    Rename(Rename),
    /// `DROP { TABLE | VIEW | INDEX | SCHEMA | SEQUENCE }`.
    Drop(Drop),
    /// `COMMENT ON`.
    CommentOn(CommentOn),
    /// `ANALYZE [table [(columns)]]`.
    Analyze(Analyze),
    /// `VACUUM [FULL] [table]`.
    Vacuum(Vacuum),
    /// `EXPLAIN`.
    Explain(Explain),
    /// `BEGIN`, `START TRANSACTION`.
    Begin(TransactionModes),
    /// `COMMIT`, `END`.
    Commit {
        /// `AND CHAIN`: begin another transaction with the same modes.
        chain: bool,
    },
    /// `ROLLBACK`, `ABORT`.
    Rollback {
        /// `AND CHAIN`: begin another transaction with the same modes.
        chain: bool,
    },
    /// `ROLLBACK TO [SAVEPOINT] name`.
    RollbackTo(Ident),
    /// `SAVEPOINT name`.
    Savepoint(Ident),
    /// `RELEASE [SAVEPOINT] name`.
    Release(Ident),
    /// `SET`.
    Set(Set),
    /// `SHOW`.
    Show(Show),
    /// `RESET name`, or `RESET ALL` as `None`.
    Reset(Option<String>),
    /// `DISCARD`.
    Discard(Discard),
    /// `PREPARE`.
    Prepare(Prepare),
    /// `EXECUTE`.
    Execute(Execute),
    /// `DEALLOCATE name`, or `DEALLOCATE ALL` as `None`.
    Deallocate(Option<Ident>),
    /// `BACKUP TO 'url'`.
    Backup {
        /// A folder on the server, or an object store.
        url: String,
    },
    /// `KILL [QUERY] id`: cancels a running query.
    Cancel {
        /// The query, as `lattice.queries` numbers it.
        query: u64,
    },
    /// A statement of the specification that is executed by a later version.
    Extension(Box<Extension>),
}

impl StatementAst {
    /// The words a command tag or a message uses: `INSERT`, `CREATE TABLE`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            StatementAst::Query(_) => "SELECT",
            StatementAst::Insert(_) => "INSERT",
            StatementAst::Update(_) => "UPDATE",
            StatementAst::Delete(_) => "DELETE",
            StatementAst::Merge(_) => "MERGE",
            StatementAst::Copy(_) => "COPY",
            StatementAst::Truncate(_) => "TRUNCATE TABLE",
            StatementAst::CreateTable(_) => "CREATE TABLE",
            StatementAst::CreateTableAs(_) => "CREATE TABLE AS",
            StatementAst::AlterTable(_) => "ALTER TABLE",
            StatementAst::CreateSchema(_) => "CREATE SCHEMA",
            StatementAst::CreateView(_) => "CREATE VIEW",
            StatementAst::CreateIndex(_) => "CREATE INDEX",
            StatementAst::CreateSequence(_) => "CREATE SEQUENCE",
            StatementAst::AlterSequence(_) => "ALTER SEQUENCE",
            StatementAst::Rename(rename) => match rename.kind {
                ObjectKind::Table => "ALTER TABLE",
                ObjectKind::View => "ALTER VIEW",
                ObjectKind::Index => "ALTER INDEX",
                ObjectKind::Schema => "ALTER SCHEMA",
                ObjectKind::Sequence => "ALTER SEQUENCE",
            },
            StatementAst::Drop(drop) => match drop.kind {
                ObjectKind::Table => "DROP TABLE",
                ObjectKind::View => "DROP VIEW",
                ObjectKind::Index => "DROP INDEX",
                ObjectKind::Schema => "DROP SCHEMA",
                ObjectKind::Sequence => "DROP SEQUENCE",
            },
            StatementAst::CommentOn(_) => "COMMENT",
            StatementAst::Analyze(_) => "ANALYZE",
            StatementAst::Vacuum(_) => "VACUUM",
            StatementAst::Explain(_) => "EXPLAIN",
            StatementAst::Begin(_) => "BEGIN",
            StatementAst::Commit { .. } => "COMMIT",
            StatementAst::Rollback { .. } | StatementAst::RollbackTo(_) => "ROLLBACK",
            StatementAst::Savepoint(_) => "SAVEPOINT",
            StatementAst::Release(_) => "RELEASE",
            StatementAst::Set(_) => "SET",
            StatementAst::Show(_) => "SHOW",
            StatementAst::Reset(_) => "RESET",
            StatementAst::Discard(_) => "DISCARD",
            StatementAst::Prepare(_) => "PREPARE",
            StatementAst::Execute(_) => "EXECUTE",
            StatementAst::Deallocate(_) => "DEALLOCATE",
            StatementAst::Backup { .. } => "BACKUP",
            StatementAst::Cancel { .. } => "KILL",
            StatementAst::Extension(extension) => extension.name(),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- changing rows

/// `[WITH …] INSERT INTO table [AS alias] [(columns)] [OVERRIDING …] source [ON CONFLICT …] [RETURNING …]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Insert {
    /// Common table expressions that the source may read.
    pub(crate) with: Option<With>,
    /// The table.
    pub(crate) table: ObjectName,
    /// Its alias, for `ON CONFLICT` and `RETURNING`.
    pub(crate) alias: Option<Ident>,
    /// The columns given; empty means all visible columns in order.
    pub(crate) columns: Vec<Ident>,
    /// `OVERRIDING { SYSTEM | USER } VALUE`.
    pub(crate) overriding: Option<Overriding>,
    /// Where the rows come from.
    pub(crate) source: InsertSource,
    /// `ON CONFLICT`.
    pub(crate) on_conflict: Option<OnConflict>,
    /// `RETURNING`; empty when absent.
    pub(crate) returning: Vec<SelectItem>,
}

/// What explicit values for identity columns mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overriding {
    /// They are used, also for `GENERATED ALWAYS`.
    System,
    /// They are ignored in favour of the sequence.
    User,
}

/// Where inserted rows come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum InsertSource {
    /// `VALUES …` or a query. `DEFAULT` inside `VALUES` is recognised by [`super::is_default`].
    Query(Box<Query>),
    /// `DEFAULT VALUES`: one row.
    DefaultValues,
}

/// `ON CONFLICT [target] action`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OnConflict {
    /// Which conflict; without one, any (only for `DO NOTHING`).
    pub(crate) target: Option<ConflictTarget>,
    /// What to do.
    pub(crate) action: ConflictAction,
}

/// Which conflict.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ConflictTarget {
    /// The unique constraint over exactly these columns.
    Columns(Vec<Ident>),
    /// The constraint of this name.
    Constraint(ObjectName),
}

/// What a conflict does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ConflictAction {
    /// Keep the row that is there.
    Nothing,
    /// Change the row that is there; `excluded` names the row that was to be inserted.
    Update {
        /// The new values.
        assignments: Vec<Assignment>,
        /// Only rows for which this is true.
        selection: Option<Expr>,
    },
}

/// `column = value`; tuple assignments are split.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assignment {
    /// The column of the target table, without qualifier.
    pub(crate) column: Ident,
    /// The new value; `DEFAULT` is recognised by [`super::is_default`].
    pub(crate) value: Expr,
}

/// `[WITH …] UPDATE table SET … [FROM …] [WHERE …] [RETURNING …]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Update {
    /// Common table expressions.
    pub(crate) with: Option<With>,
    /// The table: a `TableFactor::Table` with name, alias and version (`FOR PORTION OF`).
    pub(crate) table: TableFactor,
    /// The new values.
    pub(crate) assignments: Vec<Assignment>,
    /// `FROM`: further tables.
    pub(crate) from: Vec<TableWithJoins>,
    /// `WHERE`.
    pub(crate) selection: Option<Expr>,
    /// `RETURNING`; empty when absent.
    pub(crate) returning: Vec<SelectItem>,
}

/// `[WITH …] DELETE FROM table [USING …] [WHERE …] [RETURNING …]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delete {
    /// Common table expressions.
    pub(crate) with: Option<With>,
    /// The table: a `TableFactor::Table` with name, alias and version (`FOR PORTION OF`, `FOR ALL VALID_TIME`).
    pub(crate) table: TableFactor,
    /// `USING`: further tables.
    pub(crate) using: Vec<TableWithJoins>,
    /// `WHERE`.
    pub(crate) selection: Option<Expr>,
    /// `RETURNING`; empty when absent.
    pub(crate) returning: Vec<SelectItem>,
}

/// `[WITH …] MERGE INTO table USING source ON condition WHEN … [RETURNING …]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merge {
    /// Common table expressions.
    pub(crate) with: Option<With>,
    /// The table that changes: a `TableFactor::Table` with name and alias.
    pub(crate) table: TableFactor,
    /// The other side.
    pub(crate) source: TableFactor,
    /// The join condition.
    pub(crate) on: Expr,
    /// The `WHEN` clauses; for each row the first that applies acts.
    pub(crate) clauses: Vec<MergeClause>,
    /// `RETURNING`; empty when absent.
    pub(crate) returning: Vec<SelectItem>,
}

/// One `WHEN … [AND condition] THEN action`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MergeClause {
    /// Which rows.
    pub(crate) when: MergeWhen,
    /// `AND condition`.
    pub(crate) condition: Option<Expr>,
    /// What happens.
    pub(crate) action: MergeAction,
}

/// Which rows a `WHEN` clause is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeWhen {
    /// A target row with a source row.
    Matched,
    /// A source row without target row (`NOT MATCHED [BY TARGET]`).
    NotMatched,
    /// A target row without source row.
    NotMatchedBySource,
}

/// What a `WHEN` clause does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MergeAction {
    /// `INSERT [(columns)] VALUES (…)`; `values` is `None` for `DEFAULT VALUES`.
    Insert {
        /// The columns given; empty means all in order.
        columns: Vec<Ident>,
        /// `OVERRIDING …`.
        overriding: Option<Overriding>,
        /// One value per column.
        values: Option<Vec<Expr>>,
    },
    /// `UPDATE SET …`.
    Update(Vec<Assignment>),
    /// `DELETE`.
    Delete,
    /// `DO NOTHING`.
    Nothing,
}

/// `TRUNCATE [TABLE] names`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Truncate {
    /// The tables.
    pub(crate) tables: Vec<ObjectName>,
    /// `RESTART IDENTITY`.
    pub(crate) restart_identity: bool,
    /// `CASCADE`: also tables that reference these.
    pub(crate) cascade: bool,
    /// `IF EXISTS`.
    pub(crate) if_exists: bool,
}

/// `COPY { table [(columns)] | (query) } { FROM | TO } { STDIN | STDOUT | 'file' } [WITH (options)]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Copy {
    /// What is copied.
    pub(crate) source: CopySource,
    /// In which direction.
    pub(crate) direction: CopyDirection,
    /// The other end.
    pub(crate) target: CopyTarget,
    /// Options in order, names in lower case: `format`, `header`, `delimiter`, `null`, `quote`, `escape`, `encoding`, `compression` …
    /// Older spellings (`CSV HEADER`) arrive in the same form. Unknown names are for the executor to refuse.
    pub(crate) options: Vec<CopyOption>,
}

/// What `COPY` copies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CopySource {
    /// A table.
    Table {
        /// Its name.
        name: ObjectName,
        /// The columns; empty means all visible ones in order.
        columns: Vec<Ident>,
    },
    /// `(query)`, only `TO`.
    Query(Box<Query>),
}

/// From or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyDirection {
    /// Into the table.
    From,
    /// Out of the table or query.
    To,
}

/// The other end of a `COPY`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CopyTarget {
    /// `STDIN` or `STDOUT`: the client's connection.
    Client,
    /// A file or URL.
    File(String),
}

/// `name [value]` of a `COPY`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CopyOption {
    /// In lower case.
    pub(crate) name: String,
    /// The value: words in lower case, strings and numbers as written; `None` for a bare name (`HEADER`).
    pub(crate) value: Option<OptionValue>,
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OptionValue {
    /// A bare word, in lower case (`csv`, `true`, `on`).
    Word(String),
    /// `'text'`.
    Text(String),
    /// A number as written.
    Number(String),
    /// `(a, b)`, column names folded.
    Columns(Vec<String>),
    /// `*`: all columns.
    All,
    /// `INTERVAL '…'` or any other expression.
    Expr(Expr),
}

impl OptionValue {
    /// The value as text; lists are joined by commas.
    pub(crate) fn text(&self) -> String {
        match self {
            OptionValue::Word(text) | OptionValue::Text(text) | OptionValue::Number(text) => text.clone(),
            OptionValue::Columns(names) => names.join(","),
            OptionValue::All => "*".to_owned(),
            OptionValue::Expr(expr) => expr.to_string(),
        }
    }

    /// The value as PostgreSQL reads a switch: `true`, `on`, `yes`, `1` and their opposites.
    pub(crate) fn switch(&self) -> Option<bool> {
        match self.text().to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Some(true),
            "false" | "off" | "no" | "0" => Some(false),
            _ => None,
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- defining objects

/// `CREATE [TEMPORARY] TABLE [IF NOT EXISTS] name (columns, constraints) [WITH (options)] [ON COMMIT …]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreateTable {
    /// The table.
    pub(crate) name: ObjectName,
    /// `TEMPORARY`.
    pub(crate) temporary: bool,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// The columns, in order.
    pub(crate) columns: Vec<ColumnDefinition>,
    /// Constraints, of the table and of its columns alike; a column's carries that column's name.
    pub(crate) constraints: Vec<ConstraintDefinition>,
    /// `LIKE other`: the columns come from another table.
    pub(crate) like: Option<LikeTable>,
    /// `WITH (name = value)`, names in lower case.
    pub(crate) options: Vec<TableOption>,
    /// `ON COMMIT`, temporary tables only.
    pub(crate) on_commit: Option<OnCommit>,
}

/// `CREATE [TEMPORARY] TABLE name [(columns)] AS query [WITH [NO] DATA]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreateTableAs {
    /// The table.
    pub(crate) name: ObjectName,
    /// `TEMPORARY`.
    pub(crate) temporary: bool,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// New names for the query's columns; empty keeps them.
    pub(crate) columns: Vec<Ident>,
    /// The rows.
    pub(crate) query: Box<Query>,
    /// `WITH (name = value)`.
    pub(crate) options: Vec<TableOption>,
    /// `ON COMMIT`, temporary tables only.
    pub(crate) on_commit: Option<OnCommit>,
    /// `false` after `WITH NO DATA`.
    pub(crate) with_data: bool,
}

/// `LIKE table [INCLUDING …]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LikeTable {
    /// The other table.
    pub(crate) name: ObjectName,
    /// `INCLUDING DEFAULTS`: its default values too.
    pub(crate) defaults: bool,
}

/// What happens to a temporary table at commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnCommit {
    /// Nothing (the default).
    PreserveRows,
    /// It is emptied.
    DeleteRows,
    /// It is dropped.
    Drop,
}

/// `name = value` of a `WITH (…)` list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TableOption {
    /// In lower case.
    pub(crate) name: String,
    /// The value; `None` for a bare name.
    pub(crate) value: Option<Expr>,
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ColumnDefinition {
    /// Its name.
    pub(crate) name: Ident,
    /// Its type; see [`crate::types::TypeSpec::from_sql`].
    pub(crate) data_type: DataType,
    /// `NOT NULL`, or implied by `PRIMARY KEY` or identity.
    pub(crate) not_null: bool,
    /// `DEFAULT`.
    pub(crate) default: Option<Expr>,
    /// `GENERATED … AS IDENTITY`, `SERIAL`.
    pub(crate) identity: Option<Identity>,
    /// `GENERATED ALWAYS AS (expression) STORED`.
    pub(crate) generated: Option<Expr>,
}

/// A column that counts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    /// `ALWAYS`: explicit values are refused without `OVERRIDING SYSTEM VALUE`.
    pub(crate) always: bool,
    /// The sequence behind it.
    pub(crate) sequence: SequenceOptions,
}

/// A constraint of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConstraintDefinition {
    /// `CONSTRAINT name`.
    pub(crate) name: Option<Ident>,
    /// What must hold.
    pub(crate) rule: Constraint,
}

/// What a constraint demands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Constraint {
    /// `PRIMARY KEY (columns)`.
    PrimaryKey(Vec<Ident>),
    /// `UNIQUE (columns)`.
    Unique {
        /// The columns.
        columns: Vec<Ident>,
        /// `false` after `NULLS NOT DISTINCT`.
        nulls_distinct: bool,
    },
    /// `CHECK (expression)`.
    Check(Expr),
    /// `FOREIGN KEY (columns) REFERENCES table (columns)`.
    ForeignKey {
        /// The referencing columns.
        columns: Vec<Ident>,
        /// The referenced table.
        table: ObjectName,
        /// The referenced columns; empty means its primary key.
        referred: Vec<Ident>,
        /// `ON DELETE`.
        on_delete: Option<ReferentialAction>,
        /// `ON UPDATE`.
        on_update: Option<ReferentialAction>,
    },
}

/// `ALTER TABLE [IF EXISTS] name operations`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AlterTable {
    /// The table.
    pub(crate) name: ObjectName,
    /// `IF EXISTS`.
    pub(crate) if_exists: bool,
    /// What changes, in order.
    pub(crate) operations: Vec<AlterOperation>,
}

/// One change of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AlterOperation {
    /// `ADD [COLUMN] [IF NOT EXISTS] definition`.
    AddColumn {
        /// `IF NOT EXISTS`.
        if_not_exists: bool,
        /// The column.
        column: ColumnDefinition,
        /// Its constraints.
        constraints: Vec<ConstraintDefinition>,
    },
    /// `DROP [COLUMN] [IF EXISTS] name [CASCADE]`.
    DropColumn {
        /// The column.
        name: Ident,
        /// `IF EXISTS`.
        if_exists: bool,
        /// `CASCADE`.
        cascade: bool,
    },
    /// `RENAME [COLUMN] old TO new`.
    RenameColumn {
        /// The old name.
        from: Ident,
        /// The new name.
        to: Ident,
    },
    /// `RENAME TO new`.
    RenameTable(ObjectName),
    /// `RENAME CONSTRAINT old TO new`.
    RenameConstraint {
        /// The old name.
        from: Ident,
        /// The new name.
        to: Ident,
    },
    /// `ADD constraint [NOT VALID]`.
    AddConstraint {
        /// The constraint.
        constraint: ConstraintDefinition,
        /// `NOT VALID`: existing rows are not checked.
        not_valid: bool,
    },
    /// `DROP CONSTRAINT [IF EXISTS] name [CASCADE]`.
    DropConstraint {
        /// The constraint.
        name: Ident,
        /// `IF EXISTS`.
        if_exists: bool,
        /// `CASCADE`.
        cascade: bool,
    },
    /// `VALIDATE CONSTRAINT name`.
    ValidateConstraint(Ident),
    /// `ALTER [COLUMN] c SET NOT NULL` (`true`) or `DROP NOT NULL` (`false`).
    SetNotNull {
        /// The column.
        column: Ident,
        /// Whether it refuses nulls from now on.
        not_null: bool,
    },
    /// `ALTER [COLUMN] c SET DEFAULT e`, or `DROP DEFAULT` as `None`.
    SetDefault {
        /// The column.
        column: Ident,
        /// The new default.
        default: Option<Expr>,
    },
    /// `ALTER [COLUMN] c [SET DATA] TYPE t [USING e]`.
    SetType {
        /// The column.
        column: Ident,
        /// The new type.
        data_type: DataType,
        /// How old values become new ones.
        using: Option<Expr>,
    },
    /// `ALTER [COLUMN] c ADD GENERATED … AS IDENTITY`.
    AddIdentity {
        /// The column.
        column: Ident,
        /// The identity.
        identity: Identity,
    },
    /// `ALTER [COLUMN] c { SET GENERATED … | SET option | RESTART [WITH n] } …`.
    AlterIdentity {
        /// The column.
        column: Ident,
        /// `SET GENERATED ALWAYS` (`true`) or `SET GENERATED BY DEFAULT` (`false`).
        always: Option<bool>,
        /// `SET option` of the sequence behind it.
        options: SequenceOptions,
        /// `RESTART`; the inner value is that of `WITH`.
        restart: Option<Option<i64>>,
    },
    /// `ALTER [COLUMN] c DROP IDENTITY [IF EXISTS]`.
    DropIdentity {
        /// The column.
        column: Ident,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `SET SCHEMA name`.
    SetSchema(Ident),
    /// `OWNER TO name`.
    OwnerTo(String),
    /// `SET (name = value)`.
    SetOptions(Vec<TableOption>),
    /// `ALTER [COLUMN] c SET MERGE USING resolver` (mergeable tables, later).
    SetMerge {
        /// The column.
        column: Ident,
        /// The resolver.
        resolver: ObjectName,
    },
}

/// `CREATE SCHEMA [IF NOT EXISTS] name [AUTHORIZATION owner]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreateSchema {
    /// The schema, perhaps with its catalog.
    pub(crate) name: ObjectName,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// `AUTHORIZATION`.
    pub(crate) owner: Option<Ident>,
}

/// `CREATE [OR REPLACE] [TEMPORARY] VIEW name [(columns)] AS query`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreateView {
    /// The view.
    pub(crate) name: ObjectName,
    /// `OR REPLACE`.
    pub(crate) or_replace: bool,
    /// `TEMPORARY`.
    pub(crate) temporary: bool,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// New names for the query's columns; empty keeps them.
    pub(crate) columns: Vec<Ident>,
    /// What it shows.
    pub(crate) query: Box<Query>,
    /// The query as it was written: this is what the catalog keeps, because sqlparser cannot print every query back.
    pub(crate) query_text: Arc<str>,
}

/// `CREATE [UNIQUE] INDEX [IF NOT EXISTS] [name] ON table [USING method] (columns) [INCLUDE (columns)] [WHERE …]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreateIndex {
    /// The index; `None` means a name is made up.
    pub(crate) name: Option<ObjectName>,
    /// `UNIQUE`.
    pub(crate) unique: bool,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// `CONCURRENTLY`.
    pub(crate) concurrently: bool,
    /// The table.
    pub(crate) table: ObjectName,
    /// `USING method`, in lower case.
    pub(crate) method: Option<String>,
    /// What it orders by.
    pub(crate) columns: Vec<OrderByExpr>,
    /// `INCLUDE`.
    pub(crate) include: Vec<Ident>,
    /// `WITH (name = value)`.
    pub(crate) options: Vec<TableOption>,
    /// `WHERE`: only these rows.
    pub(crate) predicate: Option<Expr>,
    /// `false` after `NULLS NOT DISTINCT`.
    pub(crate) nulls_distinct: bool,
}

/// `CREATE [TEMPORARY] SEQUENCE [IF NOT EXISTS] name options [OWNED BY table.column]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreateSequence {
    /// The sequence.
    pub(crate) name: ObjectName,
    /// `TEMPORARY`.
    pub(crate) temporary: bool,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// `AS type`.
    pub(crate) data_type: Option<DataType>,
    /// How it counts.
    pub(crate) options: SequenceOptions,
    /// `OWNED BY`; `None` without, or after `OWNED BY NONE`.
    pub(crate) owned_by: Option<ObjectName>,
}

/// `ALTER SEQUENCE [IF EXISTS] name options`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AlterSequence {
    /// The sequence.
    pub(crate) name: ObjectName,
    /// `IF EXISTS`.
    pub(crate) if_exists: bool,
    /// What changes.
    pub(crate) options: SequenceOptions,
    /// `RESTART [WITH n]`: the inner value is `None` without `WITH`.
    pub(crate) restart: Option<Option<i64>>,
    /// `OWNED BY`: the inner value is `None` for `NONE`.
    pub(crate) owned_by: Option<Option<ObjectName>>,
}

/// How a sequence counts; what is `None` was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SequenceOptions {
    /// `INCREMENT BY`.
    pub(crate) increment: Option<i64>,
    /// `MINVALUE`; the inner value is `None` after `NO MINVALUE`.
    pub(crate) min: Option<Option<i64>>,
    /// `MAXVALUE`; the inner value is `None` after `NO MAXVALUE`.
    pub(crate) max: Option<Option<i64>>,
    /// `START WITH`.
    pub(crate) start: Option<i64>,
    /// `CACHE`.
    pub(crate) cache: Option<i64>,
    /// `CYCLE` or `NO CYCLE`.
    pub(crate) cycle: Option<bool>,
}

/// The objects that `DROP`, `RENAME` and `COMMENT ON` speak about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    /// A table.
    Table,
    /// A view.
    View,
    /// An index.
    Index,
    /// A schema.
    Schema,
    /// A sequence.
    Sequence,
}

impl ObjectKind {
    /// The kind as messages say it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            ObjectKind::Table => "table",
            ObjectKind::View => "view",
            ObjectKind::Index => "index",
            ObjectKind::Schema => "schema",
            ObjectKind::Sequence => "sequence",
        }
    }
}

/// `DROP kind [IF EXISTS] names [CASCADE | RESTRICT]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drop {
    /// What.
    pub(crate) kind: ObjectKind,
    /// Which.
    pub(crate) names: Vec<ObjectName>,
    /// `IF EXISTS`.
    pub(crate) if_exists: bool,
    /// `CASCADE`.
    pub(crate) cascade: bool,
}

/// `ALTER kind [IF EXISTS] name RENAME TO new`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rename {
    /// What.
    pub(crate) kind: ObjectKind,
    /// Which.
    pub(crate) name: ObjectName,
    /// `IF EXISTS`.
    pub(crate) if_exists: bool,
    /// The new name.
    pub(crate) to: ObjectName,
}

/// `COMMENT ON object IS 'text'`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CommentOn {
    /// On what.
    pub(crate) target: CommentTarget,
    /// The text; `None` removes it.
    pub(crate) comment: Option<String>,
}

/// What a comment is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CommentTarget {
    /// A table, view, index, schema or sequence.
    Object(ObjectKind, ObjectName),
    /// A column of a table or view.
    Column {
        /// The table.
        table: ObjectName,
        /// The column.
        column: Ident,
    },
    /// The database itself.
    Database(ObjectName),
}

/// `ANALYZE [table [(columns)]]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Analyze {
    /// Without one: all tables.
    pub(crate) table: Option<ObjectName>,
    /// Without any: all columns.
    pub(crate) columns: Vec<Ident>,
}

/// `VACUUM [FULL] [ANALYZE] [table]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vacuum {
    /// Without one: all tables.
    pub(crate) table: Option<ObjectName>,
    /// `FULL`.
    pub(crate) full: bool,
    /// `ANALYZE`.
    pub(crate) analyze: bool,
}

// ----------------------------------------------------------------------------------------------------------------- the session

/// `EXPLAIN [ANALYZE] [VERBOSE] statement` or `EXPLAIN (options) statement`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Explain {
    /// Run it and show what happened.
    pub(crate) analyze: bool,
    /// Show more.
    pub(crate) verbose: bool,
    /// How to show it.
    pub(crate) format: ExplainFormat,
    /// The statement.
    pub(crate) inner: Box<Statement>,
}

/// How a plan is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ExplainFormat {
    /// Indented lines.
    #[default]
    Text,
    /// PostgreSQL's JSON shape.
    Json,
    /// Boxes.
    Tree,
    /// Graphviz.
    Graphviz,
}

/// The modes of `BEGIN`, `START TRANSACTION`, `SET TRANSACTION`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TransactionModes {
    /// `ISOLATION LEVEL`.
    pub(crate) isolation: Option<Isolation>,
    /// `READ ONLY` (true) or `READ WRITE` (false).
    pub(crate) read_only: Option<bool>,
    /// `[NOT] DEFERRABLE`.
    pub(crate) deferrable: Option<bool>,
}

/// An isolation level as written; `REPEATABLE READ` means snapshot, `READ UNCOMMITTED` means read committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// `READ COMMITTED` and `READ UNCOMMITTED`.
    ReadCommitted,
    /// `REPEATABLE READ` and `SNAPSHOT`.
    Snapshot,
    /// `SERIALIZABLE`.
    Serializable,
}

impl Isolation {
    /// The level as `SHOW transaction_isolation` prints it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read committed",
            Isolation::Snapshot => "repeatable read",
            Isolation::Serializable => "serializable",
        }
    }
}

/// `SET`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Set {
    /// `SET [SESSION | LOCAL] name { = | TO } value, …`. `SET TIME ZONE z` arrives as `timezone`, `SET NAMES e` as
    /// `client_encoding`, `SET SCHEMA s` as `search_path`.
    Variable {
        /// The name in lower case, dots included.
        name: String,
        /// The values; empty means `DEFAULT`.
        values: Vec<OptionValue>,
        /// `LOCAL`: until the transaction ends.
        local: bool,
    },
    /// `SET TRANSACTION modes`.
    Transaction(TransactionModes),
    /// `SET SESSION CHARACTERISTICS AS TRANSACTION modes`.
    SessionTransaction(TransactionModes),
}

/// `SHOW`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Show {
    /// `SHOW name`, in lower case; `SHOW TIME ZONE` is `timezone`, `SHOW TRANSACTION ISOLATION LEVEL` is `transaction_isolation`.
    Variable(String),
    /// `SHOW ALL`.
    All,
    /// `SHOW TABLES [FROM schema] [LIKE pattern]`.
    Tables {
        /// Of which schema.
        schema: Option<ObjectName>,
        /// Which names.
        like: Option<String>,
    },
    /// `SHOW COLUMNS FROM table [LIKE pattern]`, `DESCRIBE table`.
    Columns {
        /// Of which table.
        table: ObjectName,
        /// Which names.
        like: Option<String>,
    },
    /// `SHOW SCHEMAS [LIKE pattern]`.
    Schemas {
        /// Which names.
        like: Option<String>,
    },
    /// `SHOW DATABASES`, `SHOW CATALOGS`.
    Catalogs,
    /// `SHOW FUNCTIONS [LIKE pattern]`.
    Functions {
        /// Which names.
        like: Option<String>,
    },
    /// `SHOW CREATE TABLE name`, `SHOW CREATE VIEW name`.
    Create {
        /// A table or a view.
        kind: ObjectKind,
        /// Which.
        name: ObjectName,
    },
}

/// `DISCARD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    /// Everything of the session.
    All,
    /// Cached plans.
    Plans,
    /// Cached sequence values.
    Sequences,
    /// Temporary tables.
    Temporary,
}

/// `PREPARE name [(types)] AS statement`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prepare {
    /// The name.
    pub(crate) name: Ident,
    /// The types of the first parameters.
    pub(crate) types: Vec<DataType>,
    /// The statement.
    pub(crate) inner: Box<Statement>,
}

/// `EXECUTE name [(values)]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Execute {
    /// The name.
    pub(crate) name: Ident,
    /// One value per parameter.
    pub(crate) values: Vec<Expr>,
}

// ---------------------------------------------------------------------------------------------------------------------- later

/// Statements of the specification that parse today and run in a later version. The session refuses them by [`Extension::name`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Extension {
    /// `ERASE FROM t WHERE …`: removes all versions.
    Erase(Delete),
    /// `BEGIN DETERMINISTIC GROUP 'name'`.
    BeginDeterministic {
        /// The group.
        group: String,
    },
    /// `CALL procedure(arguments)`; named arguments keep their names in lower case.
    Call {
        /// The procedure.
        name: ObjectName,
        /// Its arguments.
        arguments: Vec<(Option<String>, Expr)>,
    },
    /// `CREATE MATERIALIZED VIEW name [WITH (…)] AS query`.
    CreateMaterializedView {
        /// The view.
        name: ObjectName,
        /// `OR REPLACE`.
        or_replace: bool,
        /// `IF NOT EXISTS`.
        if_not_exists: bool,
        /// New names for the query's columns; empty keeps them.
        columns: Vec<Ident>,
        /// `WITH (name = value)`.
        options: Vec<TableOption>,
        /// What it shows.
        query: Box<Query>,
        /// The query as it was written.
        query_text: Arc<str>,
        /// `EMIT CHANGES` or `EMIT ON WINDOW CLOSE`.
        emit: Option<Emit>,
    },
    /// `REFRESH MATERIALIZED VIEW name`.
    RefreshMaterializedView {
        /// The view.
        name: ObjectName,
    },
    /// `ALTER MATERIALIZED VIEW name SET (…)`.
    AlterMaterializedView {
        /// The view.
        name: ObjectName,
        /// The new options.
        options: Vec<TableOption>,
    },
    /// `DROP MATERIALIZED VIEW [IF EXISTS] names`.
    DropMaterializedView {
        /// The views.
        names: Vec<ObjectName>,
        /// `IF EXISTS`.
        if_exists: bool,
        /// `CASCADE`.
        cascade: bool,
    },
    /// `CREATE POLICY name ON table AS { ROW | COLUMN | DP } …`.
    CreatePolicy(CreatePolicy),
    /// `DROP POLICY [IF EXISTS] name ON table`.
    DropPolicy {
        /// The policy.
        name: Ident,
        /// Its table.
        table: ObjectName,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `APPLY POLICY name ON (query)`.
    ApplyPolicy {
        /// The policy.
        name: Ident,
        /// The query it is applied to.
        query: Box<Query>,
    },
    /// `CREATE MERGE RESOLVER name LANGUAGE language AS 'source'`.
    CreateMergeResolver {
        /// The resolver.
        name: ObjectName,
        /// `wasm`.
        language: Ident,
        /// Where the code is.
        source: String,
    },
    /// `CREATE TYPE name OF table [(columns)] [WITH (…)]`: a new version of a table's schema.
    CreateTypeOf {
        /// The version.
        name: ObjectName,
        /// The table.
        table: ObjectName,
        /// The columns.
        columns: Vec<ColumnDefinition>,
        /// Their constraints.
        constraints: Vec<ConstraintDefinition>,
        /// `WITH (name = value)`.
        options: Vec<TableOption>,
    },
    /// `CREATE RESOURCE GROUP name WITH (…)`.
    CreateResourceGroup {
        /// The group.
        name: Ident,
        /// Its limits.
        options: Vec<TableOption>,
    },
    /// A table of the specification with clauses that come later (`MERGE`, `INDEX`, `PERIOD FOR`, `WITH SYSTEM VERSIONING`).
    CreateTable {
        /// The part that is executed today.
        table: Box<CreateTable>,
        /// The clauses that are not.
        clauses: Vec<TableClause>,
    },
    /// A query with a staleness bound: `SELECT … READ AT MOST 150ms STALE`.
    BoundedStaleness {
        /// The query.
        query: Box<Query>,
        /// The bound, in milliseconds.
        milliseconds: u64,
    },
}

impl Extension {
    /// The words that name it in "… is not supported".
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Extension::Erase(_) => "ERASE",
            Extension::BeginDeterministic { .. } => "BEGIN DETERMINISTIC GROUP",
            Extension::Call { .. } => "CALL",
            Extension::CreateMaterializedView { .. } => "CREATE MATERIALIZED VIEW",
            Extension::RefreshMaterializedView { .. } => "REFRESH MATERIALIZED VIEW",
            Extension::AlterMaterializedView { .. } => "ALTER MATERIALIZED VIEW",
            Extension::DropMaterializedView { .. } => "DROP MATERIALIZED VIEW",
            Extension::CreatePolicy(_) => "CREATE POLICY",
            Extension::DropPolicy { .. } => "DROP POLICY",
            Extension::ApplyPolicy { .. } => "APPLY POLICY",
            Extension::CreateMergeResolver { .. } => "CREATE MERGE RESOLVER",
            Extension::CreateTypeOf { .. } => "CREATE TYPE … OF",
            Extension::CreateResourceGroup { .. } => "CREATE RESOURCE GROUP",
            Extension::CreateTable { clauses, .. } => clauses.first().map_or("CREATE TABLE", TableClause::name),
            Extension::BoundedStaleness { .. } => "READ AT MOST … STALE",
        }
    }
}

/// When a streaming view emits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emit {
    /// Every change.
    Changes,
    /// When a window closes.
    OnWindowClose,
}

/// A clause of `CREATE TABLE` that comes later.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TableClause {
    /// `column … MERGE policy(arguments)`.
    ColumnMerge {
        /// The column.
        column: Ident,
        /// The merge type, in lower case.
        policy: String,
        /// Its arguments.
        arguments: Vec<Expr>,
    },
    /// `column … INDEX method (name = value)`.
    ColumnIndex {
        /// The column.
        column: Ident,
        /// The method, in lower case.
        method: String,
        /// Its parameters.
        options: Vec<TableOption>,
    },
    /// `PERIOD FOR name (from, to)`.
    Period {
        /// `valid_time` or `system_time`.
        name: Ident,
        /// The column where the period starts.
        from: Ident,
        /// The column where it ends.
        to: Ident,
    },
    /// `WITH SYSTEM VERSIONING`.
    SystemVersioning,
}

impl TableClause {
    /// The words that name it in "… is not supported".
    pub(crate) fn name(&self) -> &'static str {
        match self {
            TableClause::ColumnMerge { .. } => "a MERGE type on a column",
            TableClause::ColumnIndex { .. } => "INDEX on a column",
            TableClause::Period { .. } => "PERIOD FOR",
            TableClause::SystemVersioning => "WITH SYSTEM VERSIONING",
        }
    }
}

/// `CREATE POLICY name ON table AS …`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreatePolicy {
    /// The policy.
    pub(crate) name: Ident,
    /// Its table.
    pub(crate) table: ObjectName,
    /// What it does.
    pub(crate) body: PolicyBody,
}

/// What a policy does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PolicyBody {
    /// `AS ROW USING (condition)`.
    Row {
        /// Only rows for which this is true are seen.
        using: Expr,
    },
    /// `AS COLUMN (columns) USING MASK WITH (expr => '…')`.
    Column {
        /// The columns.
        columns: Vec<Ident>,
        /// The mask's parameters.
        options: Vec<TableOption>,
    },
    /// `AS DP USING (epsilon => …, …)`.
    DifferentialPrivacy {
        /// The parameters.
        options: Vec<TableOption>,
    },
    /// PostgreSQL's form: `AS { PERMISSIVE | RESTRICTIVE } FOR … TO … USING (…) WITH CHECK (…)`, as sqlparser has it.
    Postgres(Box<sqlparser::ast::CreatePolicy>),
}
