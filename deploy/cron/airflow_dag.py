"""Airflow 3: one labelling a night, one at a time. Put beside Airflow's other DAGs; workers need `submit` and Ray.

The connection lies in the worker's environment: RAY_ADDRESS, RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="batchdet_nightly",
    schedule="0 1 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
):
    BashOperator(
        task_id="label",
        # A retry follows the submission of the same night. To resume what a failed one left open: ATTEMPT=2.
        bash_command="/opt/batchdet/deploy/jobs/submit label ",
        env={"NIGHT": "{{ ds_nodash }}"},
        append_env=True,
        # Another run holds the output: nothing to do tonight.
        skip_on_exit_code=75,
        execution_timeout=timedelta(hours=22),
    )
