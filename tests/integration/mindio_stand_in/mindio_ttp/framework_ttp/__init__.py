"""What MindSpeed-LLM imports from here."""

from mindio_ttp.framework_ttp.processor import (  # noqa: F401
    tft_end_updating_os,
    tft_exception_handler,
    tft_init_controller,
    tft_init_processor,
    tft_is_reboot_node,
    tft_pause_train,
    tft_register_clean_handler,
    tft_register_exception_handler,
    tft_register_rebuild_group_handler,
    tft_register_rename_handler,
    tft_register_repair_handler,
    tft_register_rollback_handler,
    tft_register_save_ckpt_handler,
    tft_register_stop_handler,
    tft_register_stream_sync_handler,
    tft_register_zit_downgrade_rebuild_handler,
    tft_register_zit_upgrade_rebuild_handler,
    tft_register_zit_upgrade_repair_handler,
    tft_register_zit_upgrade_rollback_handler,
    tft_set_dp_group_info,
    tft_set_optimizer_replica,
    tft_start_controller,
    tft_start_processor,
    tft_start_updating_os,
)
from mindio_ttp.framework_ttp.ttp_decorator import (  # noqa: F401
    OptimizerType,
    RepairType,
    set_mindio_export_version,
)
