from tests.models.conftest import _one_thread, finished_trial, shop, study_folder

__all__ = ["_one_thread", "finished_trial", "shop", "study_folder"]
